"""The distribution of singular values: against all values by LAPACK, and how often the error bars hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convla import ConvOperator, LinearMap, spectral_density, stable_rank
from convla.geometry import BOUNDARIES
from convla.spectra import density
from convla.spectra.frobenius import squared_frobenius_norm


def operators() -> list[Any]:
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 2, 3, 3))
    made = [
        ConvOperator(kernel, (6, 5), boundary=boundary, padding=2, stride=stride)  # type: ignore[arg-type]
        for boundary in BOUNDARIES
        for stride in (1, 2)
    ]
    grouped = ConvOperator(rng.standard_normal((4, 1, 3)), (9,), groups=2, dilation=2)
    return [*made, grouped, made[0].T, ConvOperator(kernel.astype(np.float32), (6, 5))]


@pytest.mark.parametrize("operator", operators(), ids=repr)
def test_exact_shares_and_ranks(operator: Any) -> None:
    values = np.linalg.svd(np.asarray(operator.to_dense(), np.float64), compute_uv=False)
    assert squared_frobenius_norm(operator) == pytest.approx((values**2).sum(), rel=1e-6)
    rank = stable_rank(operator)
    assert rank.value == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-6)
    found = spectral_density(operator, bins=7)
    assert found.status == "exact"
    assert found.shares.sum() == pytest.approx(1.0, abs=1e-12)
    # Counted where no value is next to an edge.
    for edge, below in zip(found.edges[1:-1], np.cumsum(found.shares)[:-1], strict=True):
        if np.abs(values - edge).min() > 1e-5:
            assert below == pytest.approx(np.mean(values < edge), abs=1e-12)
    assert found.zeros == np.count_nonzero(values < 1e-10 * values[0]) or operator.dtype == np.float32


@pytest.mark.parametrize("scale", [1e-200, 1e-308, 1e170])
def test_a_stable_rank_whose_squares_leave_the_range(scale: float) -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 2, 3, 3))
    ordinary, extreme = ConvOperator(kernel, (6, 5)), ConvOperator(scale * kernel, (6, 5))
    # Subnormal numbers have few digits.
    assert stable_rank(extreme).value == pytest.approx(stable_rank(ordinary).value, rel=1e-9 if scale > 1e-300 else 0.1)


def test_zeros_are_counted_and_proved() -> None:
    found = spectral_density(ConvOperator(np.ones((2, 2, 1)), (3,)))
    assert (found.zeros, found.zeros_proved) == (3, False)  # of the kernel's numbers, not of its structure
    shifted = spectral_density(ConvOperator(np.array([[[0.0, 0.0, 1.0]]]), (5,)))
    assert (shifted.zeros, shifted.zeros_proved) == (1, True)  # one position is never read
    full = spectral_density(ConvOperator(np.array([[[0.5, 2.0, 0.5]]]), (5,)))
    assert (full.zeros, full.zeros_proved) == (0, True)


def smoothed_shares(values: Any, edges: Any, degree: int) -> Any:
    """Return the shares that the error bars speak of, by Clenshaw's sum instead of Lanczos."""
    coefficients = density._smoothed_intervals((edges / edges[-1]) ** 2, degree)
    x = 2 * (values / edges[-1]) ** 2 - 1
    return np.array([np.polynomial.chebyshev.chebval(x, c).mean() for c in coefficients])


@pytest.mark.command
def test_the_error_bars_hold_in_the_stated_share_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = ConvOperator(np.random.default_rng(1).standard_normal((2, 2, 3, 3)), (7, 7))
    values = np.linalg.svd(operator.to_dense(), compute_uv=False)
    exact = spectral_density(operator, bins=6)
    monkeypatch.setattr(density, "values_are_at_hand", lambda _: False)
    held, runs = 0, 60
    for seed in range(runs):
        found = spectral_density(operator, bins=6, probes=8, degree=24, confidence=0.9, rng=seed)
        wanted = smoothed_shares(values, found.edges, 24)
        held += bool(np.all(np.abs(found.shares - wanted) <= found.errors + 1e-12))
        assert found.shares.sum() == pytest.approx(1.0, abs=1e-9)
    # Of 60 runs with a share of 0.9 fewer than 46 hold with a probability below 1e-3.
    assert held >= 46
    assert np.median(found.errors) < 0.2  # and they are not so wide that they say nothing
    # Smoothing moves mass over no more than its blur: shares up to an edge differ by those of values near it.
    reached = np.cumsum(smoothed_shares(values, exact.edges, 512))
    assert np.abs(reached - np.cumsum(exact.shares)).max() < 0.05


def test_other_maps_and_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Diagonal(LinearMap):
        like = np.linspace(0.5, 3.0, 40)[None, :]
        domain_shape = range_shape = (1, 40)

        def apply(self, image: Any) -> Any:
            return image * self.like

        adjoint = apply

    operator = Diagonal()
    exact = float((operator.like**2).sum() / 9.0)
    assert stable_rank(operator).value == pytest.approx(exact, rel=1e-9)
    monkeypatch.setattr(density, "_WRITTEN", 0)
    estimated = stable_rank(operator, rng=1)
    assert estimated.status == "estimated"
    assert abs(estimated.value - exact) <= estimated.error
    monkeypatch.setattr(density, "values_are_at_hand", lambda _: False)
    one, two = (spectral_density(operator, bins=5, degree=16, rng=3) for _ in range(2))
    assert np.array_equal(one.shares, two.shares)


def test_what_is_refused() -> None:
    operator = ConvOperator(np.zeros((1, 1, 3)), (5,))
    with pytest.raises(ValueError, match="must not be zero"):
        stable_rank(operator)
    with pytest.raises(ValueError, match="must not be zero"):
        spectral_density(operator)
    with pytest.raises(ValueError, match="probes must be at least 2"):
        spectral_density(operator, probes=1)
