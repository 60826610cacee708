"""CUDA without a device: an array library like CuPy, and processors that run a kernel's source."""
