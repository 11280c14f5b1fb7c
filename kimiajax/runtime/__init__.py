"""The process: devices, signals, memory, compiled programs, progress, exit status."""
