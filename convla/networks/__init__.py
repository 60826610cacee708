"""Models in files: their arrays read and written, their kernels found, measured and initialised."""
