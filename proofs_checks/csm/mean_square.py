"""CSM Section 5: the size of the error terms in mean square over kernels, exactly, and its limits for long kernels."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np

from convla import identities
from convla.typing import NumPyArray as Array
from proofs_checks.bases import vector_sizes
from proofs_checks.csm.full import TABLE_SIZES
from proofs_checks.draws import for_all, integers, pairs_and_inputs
from proofs_checks.statement import Kind, evidence

__all__: list[str] = []


def _signs(channels: int, size: tuple[int, ...]) -> Array:
    """Return every kernel with entries 1 and -1: entries of mean 0, variance 1, uncorrelated, to the last digit."""
    entries = channels * math.prod(size)
    return np.array(list(itertools.product((-1, 1), repeat=entries))).reshape(-1, channels, *size)


@evidence(
    Kind.PROOF,
    "all kernels of signs, inputs with entries -2 .. 2, which decide a quartic: every N <= 3, M <= 3, P; 2x2 on 2x2; "
    "C = 2, N = 2, M = 2",
)
def mean_square_is_the_energy(_: int) -> str:
    count = 0
    cases: list[tuple[int, tuple[int, ...], tuple[int, ...], int]] = [
        (1, (n,), (m,), p) for n, m in vector_sizes(3, 3) for p in range(max(0, (n - m + 1) // 2), n)
    ]
    cases += [(1, (2, 2), (2, 2), 0), (2, (2,), (2,), 0)]
    for channels, size, image, p in cases:
        kernels = _signs(channels, size)
        entries = channels * math.prod(image)
        inputs = np.array(list(itertools.product(range(-2, 3), repeat=entries))).reshape(-1, channels, *image)
        left_out, whole = identities.padding_error_energy(inputs, size, p, channels=True)
        a, b = identities.padding_error_terms(kernels, kernels, inputs, p, stacks=True)
        full = identities.correlation_inner_product(kernels, kernels, inputs, stacks=True)
        for energy, values in ((left_out, a + b), (whole, full)):
            # The sum over all pairs of kernels is their number times the mean.
            assert np.array_equal((values**2).sum(axis=(1, 2)), len(kernels) ** 2 * energy), (size, image, p)
        count += 2 * len(inputs)
    return f"{count} mean squares, exactly"


@evidence(Kind.PROPERTY, "integer inputs, 1 to 3 axes, several channels: every padding of one side more")
def energy_falls_with_padding(examples: int) -> str:
    compared = 0

    def check(k1: Array, _: Array, x: Array) -> None:
        nonlocal compared
        size = k1.shape[2:]
        for axis, n in enumerate(size):
            for side, less in itertools.product((0, 1), range(n - 1)):
                energies = []
                for amount in (less, less + 1):
                    padding = [[0, 0] for _ in size]
                    padding[axis][side] = amount
                    sides = [(low, high) for low, high in padding]
                    energies.append(identities.padding_error_energy(x, size, sides, channels=True)[0])
                assert (energies[0] >= energies[1]).all(), (x, size, axis, side, less)
                compared += 1
        full, _whole = identities.padding_error_energy(x, size, "full", channels=True)
        assert not full.any(), "full padding leaves nothing out"

    for_all(examples, pairs_and_inputs(integers), check)
    return f"{compared} pairs of paddings"


def _ratio(x: Array, n: int, padding: int = 0) -> float:
    """Return the root of the quotient of the mean energies over the inputs x (draws, 1, M)."""
    left_out, whole = identities.padding_error_energy(x, (n,), padding, channels=True)
    return math.sqrt(float(left_out.mean()) / float(whole.mean()))


@evidence(
    Kind.MEASUREMENT, "X uniform on (0, 1), 500 inputs; N = 3, 9, 16, M = 64: root mean squares, beside the counts"
)
def sizes_in_mean_square(_: int) -> str:
    found = []
    for n, m in TABLE_SIZES:
        x = np.random.default_rng(0).uniform(0, 1, (500, 1, m))
        ratios = [_ratio(x, n, p) for p in range(n)]
        assert all(a > b for a, b in itertools.pairwise(ratios)), f"N = {n}: {ratios}"
        counted = 2 * (n - 1) / (m + n - 1)
        # The authors' count of terms is right in order: it is above, and by a factor of two or so.
        assert 0.3 < ratios[0] / counted < 1.0, f"N = {n}: {ratios[0]} where terms count for {counted}"
        shown = ", ".join(f"{ratios[p]:.3f}" for p in (0, (n - 1) // 2))
        found.append(f"N = {n}: {shown} at P = 0, {(n - 1) // 2}; terms counted {counted:.3f} at P = 0")
    return "; ".join(found)


def _constant_limit(c: float) -> float:
    """Return the limit of the ratio for X = 1: Gram matrices N - |d| and M - |d| in place of sums."""
    return c * math.sqrt(0.5 / (1 - 2 * c / 3 + c * c / 6))


def _noise_limit(c: float) -> float:
    """Return the limit for white noise: squares of the diagonals, variances off them."""
    return c * math.sqrt(5 / (3 + 3 * c - c * c))


@evidence(
    Kind.PROOF,
    "X = 1 and all inputs of signs, N <= 4, M = 4 .. 8, exactly; then N / M = 1/8, 1/4, 1/2 at growing M, P = 0, and in "
    "two dimensions",
)
def ratios_approach_their_limits(_: int) -> str:
    for n, m in itertools.product(range(1, 5), range(4, 9)):
        lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        left_out, whole = identities.padding_error_energy(np.ones(m, np.int64), (n,), 0)
        assert (int(left_out), int(whole)) == (int(((n - 1 - lags) ** 2).sum()), int(((m - lags) ** 2).sum()))
        signs = _signs(1, (m,))
        left_out, whole = identities.padding_error_energy(signs, (n,), 0, channels=True)
        off = lags > 0
        wanted = [n * k**2 + int((k - lags)[off].sum()) for k in (n - 1, m)]
        means = [Fraction(int(energy.sum()), len(signs)) for energy in (left_out, whole)]
        assert means == wanted, (n, m, means, wanted)
    found = []
    for c in (1 / 8, 1 / 4, 1 / 2):
        errors = []
        for m in (64, 256):
            n = round(c * m)
            lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
            noise = [n * k**2 + (k - lags)[lags > 0].sum() for k in (n - 1, m)]
            constant = _ratio(np.ones((1, 1, m)), n)
            errors.append(
                (abs(constant / _constant_limit(c) - 1), abs(math.sqrt(noise[0] / noise[1]) / _noise_limit(c) - 1))
            )
        # Both approach like 1 / N: four times the length, a quarter of the distance, or nearly.
        assert all(2.5 < far / near < 6 for far, near in zip(*errors, strict=True)), (c, errors)
        found.append(f"N / M = {c:g}: {_constant_limit(c):.3f} for X = 1, {_noise_limit(c):.3f} for white noise")
    # In two dimensions the outputs left out form a frame: the matrix is a product less a product.
    n, m = 3, 8
    lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    line = m - lags
    left_out, whole = identities.padding_error_energy(np.ones((m, m), np.int64), (n, n), 0)
    frame = np.kron(line, line) - (m - n + 1) ** 2
    assert (int(left_out), int(whole)) == (int((frame**2).sum()), int((np.kron(line, line) ** 2).sum()))
    one = _ratio(np.ones((1, 1, m)), n)
    plane = math.sqrt(int(left_out) / int(whole))
    assert one < plane < 2 * one, (one, plane)
    found.append(f"3x3 on an 8x8 image, X = 1: {plane:.3f}, where 3 on 8 has {one:.3f}: the borders of both axes add")
    return "; ".join(found)
