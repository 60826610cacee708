"""Convolution by transforms: the same maps, an error small next to the norms, and taken where it is the quicker."""

from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import pytest
import scipy.signal

from convla import ConvGeometry, ConvOperator, _windows, cross_correlate, image_adjoint, kernel_adjoint
from convla._array import to_numpy
from convla.engines import fourier
from convla.errors import EngineError
from convla.spectra.roundoff import in_double
from tests.geometries import product

UNIT = 2.0**-53
MAPS = ("correlate", "correlate_image_adjoint", "correlate_kernel_adjoint")


def bound(first: Any, second: Any, geometry: ConvGeometry) -> float:
    """A bound of an entry's error: transforms of so many entries lose about log2 of their number units of the norms.

    A boundary that repeats the image enlarges its norm; the factor of 10 covers the constants of the transforms.
    """
    period = float(np.prod(fourier.torus(geometry)))
    enlarged = np.sqrt(np.prod(geometry.padded_shape) / np.prod(geometry.image_shape)) + 1
    norms = np.linalg.norm(np.ravel(first)) * np.linalg.norm(np.ravel(second))
    return float(10 * UNIT * (np.log2(period) + 1) * norms * enlarged)


@pytest.mark.command
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_the_three_maps_on_every_geometry(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(batch))
    for geometry in product(seed=5, every=7):
        image = rng.standard_normal((*batch, *geometry.domain_shape))
        features = rng.standard_normal((*batch, *geometry.range_shape))
        kernel = rng.standard_normal(geometry.kernel_shape)
        for name, arguments in zip(MAPS, ((image, kernel), (features, kernel), (features, image)), strict=True):
            wanted = getattr(_windows, name).reference(*arguments, geometry)
            got = getattr(fourier, name)(*arguments, geometry)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=bound(*arguments, geometry), err_msg=repr(geometry))


def test_a_long_filter_is_that_of_scipy_in_either_dtype() -> None:
    rng = np.random.default_rng(0)
    kernel, image = rng.standard_normal((1, 1, 2047)), rng.standard_normal((1, 16_384))
    for dtype in (np.float64, np.float32):
        k, x = kernel.astype(dtype), image.astype(dtype)
        operator = ConvOperator(k, (16_384,), padding="full")
        assert isinstance(operator._for_image, fourier.Spectrum)
        features = operator.apply(x)
        wanted = scipy.signal.correlate(x[0].astype(float), k[0, 0].astype(float), mode="full", method="direct")[None]
        error = bound(x, k, operator.geometry) + np.finfo(dtype).eps * np.abs(wanted).max()
        assert features.dtype == dtype
        np.testing.assert_allclose(features, wanted, rtol=0, atol=error)
        # <M x, y> = <x, M^T y> = <k, kernel_adjoint(y, x)>
        back, gradient = operator.adjoint(features), operator.kernel_adjoint(features, x)
        assert back.dtype == gradient.dtype == dtype
        square = np.vdot(features, features).item()
        unit = 2047 * np.finfo(dtype).eps * float(np.linalg.norm(x) * np.linalg.norm(back))
        assert abs(float(np.vdot(x, back)) - square) <= unit
        assert abs(float(np.vdot(k, gradient)) - square) <= unit


def test_few_taps_integers_and_proofs_are_summed_directly() -> None:
    long, short = np.ones((1, 1, 4095)), np.ones((1, 1, 15))
    assert isinstance(ConvOperator(long, (65_536,))._for_image, fourier.Spectrum)
    for operator in (
        ConvOperator(short, (65_536,)),
        ConvOperator(long, (65_536,), engine="direct"),
        ConvOperator(long.astype(int), (65_536,)),
        ConvOperator(long, (65_536,)).with_engine("reference"),
        in_double(ConvOperator(long, (65_536,))),  # the rounding bounds of enclosures are those of direct sums
        in_double(ConvOperator(long, (65_536,), engine="fft")),
    ):
        assert not isinstance(operator._for_image, fourier.Spectrum)
        assert not isinstance(operator._for_features, fourier.Spectrum)
    with pytest.raises(EngineError, match="engine 'fft' takes arrays of float32 or float64, got numpy"):
        ConvOperator(long.astype(int), (65_536,), engine="fft")


def test_the_choice_of_the_environment_and_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    long = np.ones((1, 1, 4095))
    monkeypatch.setenv("CONVLA_ENGINE", "direct")
    assert not isinstance(ConvOperator(long, (65_536,))._for_image, fourier.Spectrum)
    assert isinstance(ConvOperator(long, (65_536,), engine="fft")._for_image, fourier.Spectrum)


def test_a_new_kernel_has_a_transform_of_its_own() -> None:
    rng = np.random.default_rng(3)
    kernels, image = rng.standard_normal((2, 2, 3, 5)), rng.standard_normal((3, 20))
    for engine in ("fft", "numba", "reference"):
        operator = ConvOperator(kernels[0], (20,), engine=engine)
        before = operator.apply(image)
        other = operator.with_kernel(kernels[1])
        wanted = cross_correlate(image, kernels[1], padding="same", engine="reference")
        np.testing.assert_allclose(other.apply(image), wanted, rtol=0, atol=1e-13)
        np.testing.assert_array_equal(operator.apply(image), before)
        with pytest.raises(ValueError, match="read-only"):
            operator.kernel[0, 0, 0] = 7.0  # what was made of the kernel would grow old


def torch_array(values: np.ndarray[Any, Any]) -> Any:
    return pytest.importorskip("torch").asarray(values)


@pytest.mark.parametrize("library", [array_api_strict.asarray, torch_array])
def test_other_libraries_transform_too(library: Any) -> None:
    rng = np.random.default_rng(4)
    kernel, image = rng.standard_normal((4, 2, 3, 5)), rng.standard_normal((2, 4, 9, 8))
    options: dict[str, Any] = {"padding": "same", "stride": 2, "groups": 2, "boundary": "reflect"}
    features = cross_correlate(image, kernel, engine="reference", **options)
    k, x, y = library(kernel), library(image), library(features)
    pairs = (
        (cross_correlate(x, k, engine="fft", **options), features),
        (
            image_adjoint(y, k, image_shape=(9, 8), engine="fft", **options),
            image_adjoint(features, kernel, image_shape=(9, 8), engine="reference", **options),
        ),
        (
            kernel_adjoint(y, x, kernel_size=(3, 5), engine="fft", **options),
            kernel_adjoint(features, image, kernel_size=(3, 5), engine="reference", **options),
        ),
    )
    for got, wanted in pairs:
        assert type(got) is type(x)
        np.testing.assert_allclose(to_numpy(got), wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())
