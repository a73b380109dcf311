"""What every layer stands on: units, random streams, the kernel compiler, columns, errors."""
