"""What is said where a device, its driver, its libraries or its memory are not as they should be."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convla import _windows, reweighted_gradient
from convla._cuda import cuda_trouble
from convla.engines import cupy_gradients
from convla.errors import EngineError, install_line
from convla.geometry import ConvGeometry


def _no_driver() -> int:
    raise RuntimeError("cudaErrorInsufficientDriver")


def test_arrays_on_two_devices_are_refused(cupy: ModuleType) -> None:
    kernel = cupy.asarray(np.ones((2, 1, 3)))
    with cupy.cuda.Device(1):
        image = cupy.asarray(np.ones((1, 5)))
    geometry = ConvGeometry((2, 1, 3), (5,), padding="same")
    with pytest.raises(EngineError, match="must be on one device, got devices 0, 1: copy them to one"):
        _windows.correlate(image, kernel, geometry)


class CUDARuntimeError(RuntimeError):
    """As CuPy names the driver's."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            MemoryError("Out of memory allocating 512 bytes"),
            MemoryError,
            r"memory \(Out of .*\): pass fewer",
        ),
        (CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"), MemoryError, r"free_all_blocks\(\)"),
        (ImportError("libcublas.so.12: cannot open shared object file"), EngineError, r"cupy-cuda12x\[ctk\]"),
        (
            RuntimeError("CuPy failed to load libcufft.so.11: OSError"),
            EngineError,
            r"cannot be loaded \(Runtime",
        ),
        (CUDARuntimeError("cudaErrorIllegalAddress: ..."), CUDARuntimeError, r"^cudaErrorIllegalAddress: \.\.\.$"),
    ],
)
def test_trouble_on_the_device_names_the_remedy(
    error: Exception, kind: type[Exception], message: str, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cupy_gradients, "launch_kernel", refuse)
    with pytest.raises(kind, match=message):
        reweighted_gradient(cupy.asarray(np.ones((3, 3))), 2.0)
    np.testing.assert_allclose(reweighted_gradient(np.ones((3, 3)), 2.0), np.ones((3, 3)))  # the CPU does not mind


def test_a_compiler_that_is_not_there_names_the_remedy(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ImportError("libnvrtc.so.12: cannot open shared object file")

    monkeypatch.setattr(cupy.RawKernel, "compile", refuse)
    with pytest.raises(
        EngineError, match=r"cannot be compiled \(ImportError: libnvrtc.*pip install 'cupy-cuda12x\[ctk\]'"
    ):
        reweighted_gradient(cupy.asarray(np.ones((3, 3))), 2.0)
    reweighted_gradient(np.ones((3, 3)), 2.0)  # the CPU does not mind


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (lambda: 2, ""),
        (lambda: 0, "the driver shows no device"),
        (_no_driver, r"no usable driver \(cudaErrorInsufficientDriver\): install or update"),
    ],
)
def test_what_is_amiss_is_said(driver: Any, message: str, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", driver)
    assert re.search(message, cuda_trouble()) if message else cuda_trouble() == ""


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "unset it" in cuda_trouble()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert install_line("cuda12") in cuda_trouble()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "cannot be imported" in cuda_trouble()
