"""What code that extends the library stands on: kernels of its own, checks of arguments, threads, whole files.

`convla.experiments` is such code, and imports nothing of the library that does not have a public name.
"""

from convla._array import device_of, namespace, on_device_of, to_numpy
from convla._cuda import blocks_for, cuda_trouble, launch_kernel, on_its_device
from convla._dispatch import accelerated, check_cuda, engine_names
from convla._files import atomic_write, flush_folder
from convla._threads import at_most, blas_on_one_thread, in_order, share
from convla._validate import check_array, check_choice, check_integer, check_real, check_same_shape, check_sizes

__all__ = [
    "accelerated",
    "at_most",
    "atomic_write",
    "blas_on_one_thread",
    "blocks_for",
    "check_array",
    "check_choice",
    "check_cuda",
    "check_integer",
    "check_real",
    "check_same_shape",
    "check_sizes",
    "cuda_trouble",
    "device_of",
    "engine_names",
    "flush_folder",
    "in_order",
    "launch_kernel",
    "namespace",
    "on_device_of",
    "on_its_device",
    "share",
    "to_numpy",
]
