"""One KVM hypervisor host: Linux memory manager, EPT and MMU."""
