"""Singular values of maps that are no convolutions, against LAPACK: wide and tall, of any scale and either dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convla import LinearMap, condition_number, largest_singular_value, singular_values, smallest_singular_value
from convla.errors import ShapeError


class Matrix(LinearMap):
    """A matrix as a map of one channel for each entry."""

    def __init__(self, matrix: np.ndarray, positions: tuple[int, ...] = (1,)) -> None:
        self.kernel, self._positions = matrix, positions

    @property
    def domain_shape(self) -> tuple[int, ...]:
        return (self.kernel.shape[1], *self._positions)

    @property
    def range_shape(self) -> tuple[int, ...]:
        return (self.kernel.shape[0], *self._positions)

    def apply(self, image: Any) -> Any:
        return (image[..., 0] @ self.kernel.T)[..., None]

    def adjoint(self, features: Any) -> Any:
        return (features[..., 0] @ self.kernel)[..., None]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (3, 700)])
@pytest.mark.parametrize("exponent", [0, -100, 100, -600, 600])
def test_values_of_any_scale(shape: tuple[int, int], exponent: int, dtype: type) -> None:
    if dtype == np.float32 and abs(exponent) > 100:
        pytest.skip("beyond float32")
    matrix = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    operator = Matrix(matrix * dtype(2.0) ** exponent)
    scale = 2.0**-exponent
    rounding = 8 * np.finfo(np.float64).eps * np.sqrt(max(shape)) * exact[0]
    for result, right in [
        (largest_singular_value(operator), exact[:1]),
        (smallest_singular_value(operator.T), exact[-1:]),
        (singular_values(operator, 3), exact[:3]),
        (singular_values(operator), exact),
    ]:
        assert result.status == "exact"
        np.testing.assert_allclose(result.values * scale, right, rtol=0, atol=rounding)
    found = condition_number(operator)
    assert float(found) == pytest.approx(exact[0] / exact[-1], rel=1e-12)
    assert found.status == "exact"
    assert abs(found.value - exact[0] / exact[-1]) <= found.error


def test_what_is_no_channels_and_positions_is_named() -> None:
    with pytest.raises(ShapeError, match=r"operator.domain_shape must be \(c, \*positions\)"):
        largest_singular_value(Matrix(np.eye(3), positions=()))


def test_maps_to_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="must map finite arrays to finite ones"):
        largest_singular_value(Matrix(np.full((3, 3), np.nan)))
