"""Names for the types that cross module borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""An array of any library that follows the Python array API standard (NumPy, CuPy, PyTorch, JAX, ...)."""

ArrayLike: TypeAlias = Any
"""An `Array`, or nested sequences of numbers, which are taken as a NumPy array."""

IndexArray: TypeAlias = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]
"""Places in an array, as signed integers of NumPy."""

Namespace: TypeAlias = Any
"""An array-API namespace, as given by `array_api_compat.array_namespace`."""

Engine: TypeAlias = Literal["auto", "direct", "reference", "numba", "cuda", "fft"]
"""Which kernel runs an operation.

"auto" takes the one that was measured to be the fastest for the arrays, "direct" the fastest whose sums are those of
the definition in some order, "reference" the array code, which any library runs. The others are engines: "numba" takes
NumPy arrays of float32 and float64, "cuda" arrays on a CUDA device, "fft" any of float32 and float64, in convolutions.
An engine that does not take the arrays, or has no kernel for the operation, is refused: `convla.errors.EngineError`.
"""

Padding: TypeAlias = Literal["full", "same", "valid"] | int | Sequence[tuple[int, int]]
"""A padding mode, one amount for both sides of every axis, or (low, high) for each axis, negative where it crops."""

Boundary: TypeAlias = Literal["zero", "circular", "reflect", "replicate", "symmetric"]
"""What stands outside the image."""

Seed: TypeAlias = Any
"""Anything `numpy.random.default_rng` takes: None, an integer, a SeedSequence, a Generator."""
