"""Built-in scenarios and data, shipped in the wheel."""
