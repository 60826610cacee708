"""The entry point of ``python -m convla.gpu_check``."""

import sys

from convla.gpu_check.command import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
