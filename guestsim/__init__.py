"""What runs inside a VM: guest memory behaviour over time."""
