"""One command for a machine with a GPU: the tests that need one, a memory checker, and the benchmark.

``python -m convla.gpu_check`` needs a checkout and CuPy; PyTorch and NVIDIA's compute-sanitizer take part where they
are there. It writes `gpu-check.json` and `gpu-check.md`, after every step anew, so that an interrupt loses the step
only.
"""

from convla.gpu_check.command import main

__all__ = ["main"]
