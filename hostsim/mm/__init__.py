"""The Linux memory manager, one mechanism a module under its kernel name."""
