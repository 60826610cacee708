"""A seeded search for layers that the library gets wrong; see `python -m tests.fuzz --help`."""
