"""Arrays of the stand-in for CuPy, and whether what comes back is what the reference says."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from convla._array import is_cupy, to_numpy


def on_device(cupy: ModuleType, value: Any) -> Any:
    return cupy.asarray(value) if isinstance(value, np.ndarray) else value


def assert_agrees(got: Any, wanted: Any, epsilons: int) -> None:
    assert is_cupy(got)
    got = to_numpy(got)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    bound = epsilons * np.finfo(wanted.dtype).eps * np.abs(wanted).max() if epsilons else 0.0
    np.testing.assert_allclose(got, wanted, rtol=0, atol=bound)
