"""What the symbol says of the ends of the spectrum, and what it does not; where the penalty's descent ends."""

from __future__ import annotations

import itertools

import numpy as np

import convla
from convla.penalties import Exact
from convla.spectra.symbol import Symbol
from convla.typing import AnyArray
from convla.typing import NumPyArray as Array
from proofs_checks.rck.penalty import scaling_turns_the_penalty_into_the_condition_number
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]


def _peak(kernel: Array) -> float:
    """Return the largest modulus of a scalar symbol of one variable."""
    symbol = Symbol(kernel, convla.ConvGeometry(kernel.shape, (64,), padding="same"))

    def square(theta: float | Array) -> AnyArray:
        return np.abs(np.asarray(symbol.at(np.atleast_1d(theta)[:, None]))[0, :, 0, 0]) ** 2

    grid = np.linspace(0, np.pi, 4097)
    width = float(grid[1])
    theta = float(grid[np.argmax(square(grid))])
    for _ in range(3):  # finer grids about the maximum
        near = np.linspace(theta - width, theta + width, 401)
        theta, width = float(near[np.argmax(square(near))]), width / 100
    return float(np.sqrt(square(theta)[0]))


def _norm(kernel: Array, n: int) -> float:
    return float(convla.largest_singular_value(convla.ConvOperator(kernel, (n,))).value)


@evidence(Kind.MEASUREMENT, "9 scalar kernels of 3 to 5 taps, n = 16, 32, 64")
def differences_fall_as_the_square_of_the_size(_: int) -> str:
    rng = np.random.default_rng(0)
    kernels = [np.array([[[1.0, 2.0, 1.0]]]), np.array([[[1.0, 0.0, -1.0]]])]
    kernels += [rng.standard_normal((1, 1, taps)) for taps in (3, 3, 3, 4, 4, 5, 5)]
    constants, gains = [], []
    for kernel in kernels:
        peak = _peak(kernel)
        gaps = [peak - _norm(kernel, n) for n in (16, 32, 64)]
        ratios = [a / b for a, b in itertools.pairwise(gaps)]
        assert all(2.7 < ratio < 5.0 for ratio in ratios), f"{kernel.ravel()}: ratios {ratios} per doubling"
        constants.append(64**2 * gaps[-1] / peak)
        leading = convla.asymptotic_largest_singular_value(convla.ConvOperator(kernel, (64,)))
        gains.append(abs(_norm(kernel, 64) - leading) / gaps[-1])
    assert max(gains) < 0.12, f"the leading term leaves {max(gains):.0%} of the difference"
    return (
        f"n^2 (sup - norm) / sup from {min(constants):.1f} to {max(constants):.1f}; "
        f"the leading term leaves {max(gains):.1%} of it at most, at n = 64"
    )


@evidence(
    Kind.PROOF,
    "(1, 2, 1), whose singular values are 2 + 2 cos(pi j / (n + 1)), and its square in two dimensions: n = 8 .. 512",
)
def leading_term_of_a_known_spectrum(_: int) -> str:
    taps = np.array([1.0, 2.0, 1.0])
    for n, m in ((8, 16), (16, 16), (64, 32), (512, 64)):
        line, plane = (
            convla.ConvOperator(taps[None, None], (n,)),
            convla.ConvOperator(np.outer(taps, taps)[None, None], (n, m)),
        )
        # |f|^2 = (2 + 2 cos)^2 has the second derivative -16 at 0; in the plane -16 * 16 along each axis.
        for operator, wanted in (
            (line, 16 - 8 * np.pi**2 / (n + 1) ** 2),
            (plane, 256 - 128 * np.pi**2 * (1 / (n + 1) ** 2 + 1 / (m + 1) ** 2)),
        ):
            leading = float(convla.asymptotic_largest_singular_value(operator)) ** 2
            # The Hessian is found by differences: its term, not its square, to six digits.
            term = (16 if operator is line else 256) - wanted
            assert abs(leading - wanted) <= 1e-5 * term, (n, m, leading, wanted)
        angle = np.pi / (n + 1)
        exact = (2 + 2 * np.cos(angle)) ** 2
        assert abs(float(convla.largest_singular_value(line).value) ** 2 - exact) <= 1e-7
        # 16 - 8 x^2 + (5/3) x^4 - ...: the leading term is right to the fourth order, and not with n or n + 2.
        assert abs(16 - 8 * angle**2 - exact) <= 2 * angle**4, n
        # With stride 2 the sizes are those of the output: |f|^2 is 8 at most, its second derivative -2.
        strided = convla.ConvOperator(taps[None, None], (n,), stride=2)
        leading, peak = float(convla.asymptotic_largest_singular_value(strided)) ** 2, 8.0
        wanted = peak - np.pi**2 / (n / 2 + 1) ** 2
        assert abs(leading - wanted) <= 1e-5 * (peak - wanted), (n, leading, wanted)
        for other in (n, n + 2):
            assert abs(16 - 8 * (np.pi / other) ** 2 - exact) > 10 * abs(16 - 8 * angle**2 - exact) or n < 16, n
    return "8 leading terms; the error is of the fourth order"


@evidence(Kind.COUNTEREXAMPLE, "kernel (-1/4, 1, 7/2, 1, -1/4), symbol 5 - (1 - cos)^2, and the unit kernel")
def flat_maxima_have_no_leading_term(_: int) -> str:
    flat = np.array([[[-0.25, 1.0, 3.5, 1.0, -0.25]]])
    assert abs(_peak(flat) - 5) < 1e-12
    leading = convla.asymptotic_largest_singular_value(convla.ConvOperator(flat, (64,)))
    assert abs(leading - 5) < 1e-6, f"no curvature, no leading term: {leading}"
    gaps = [5 - _norm(flat, n) for n in (16, 32, 64)]
    ratios = [a / b for a, b in itertools.pairwise(gaps)]
    assert all(11 < ratio < 18 for ratio in ratios), f"ratios {ratios} per doubling"
    assert _norm(np.array([[[0.0, 1.0, 0.0]]]), 16) == 1.0, "a constant symbol: no difference at all"
    return f"ratios {ratios[0]:.1f}, {ratios[1]:.1f} per doubling: the difference is O(1/n^4)"


@evidence(Kind.COUNTEREXAMPLE, "kernel (1, 1/2, 0), n = 2 .. 64, exact integers")
def tiny_singular_value_of_a_symbol_without_zeros(_: int) -> str:
    for n in range(2, 65):
        doubled = convla.toeplitz_matrix(np.array([2, 1, 0], dtype=object), n)
        # v = (1, -2, 4, ...): each row but the first cancels, so |T v| = 1/2 and sigma_min <= 1 / (2 |v|).
        v = np.array([(-2) ** i for i in range(n)], dtype=object)
        image = doubled @ v
        assert image[0] == 1, n
        assert not any(image[1:]), n
        assert int(v @ v) >= 4 ** (n - 1), n
    symbol = Symbol(np.array([[[1.0, 0.5, 0.0]]]), convla.ConvGeometry((1, 1, 3), (64,), padding="same"))
    moduli = np.abs(np.asarray(symbol.at(np.linspace(-np.pi, np.pi, 721)[:, None]))[0, :, 0, 0])
    assert abs(moduli.min() - 0.5) < 1e-12, "|f| = |e^{-i theta} + 1/2| is at least 1/2"
    measured = [
        float(convla.smallest_singular_value(convla.ConvOperator(np.array([[[1.0, 0.5, 0.0]]]), (n,))).value)
        for n in (8, 16, 32)
    ]
    assert all(value <= 0.5 / 2.0 ** (n - 1) * 1.01 for n, value in zip((8, 16, 32), measured, strict=True)), measured
    return f"min |f| = 1/2; sigma_min = {measured[0]:.1e}, {measured[1]:.1e}, {measured[2]:.1e} at n = 8, 16, 32, below 2^-64 at 64"


@evidence(Kind.MEASUREMENT, "kernels uniform on (-1/2, 1/2), h >= g, 5x5 images, descents that have settled, alpha = 1")
def ends_balance_where_the_descent_settles(_: int) -> str:
    found = []
    for shape in ((1, 1, 3, 3), (3, 1, 3, 3), (2, 1, 2, 2), (4, 2, 3, 3)):
        above, below = _ends_after_descent(np.random.default_rng(0).uniform(-0.5, 0.5, shape))
        assert abs(above - below) < 0.08 * max(above, below), f"{shape}: {above:.4f} above, {below:.4f} below"
        found.append(f"{'x'.join(map(str, shape))}: {above:.3f} above, {below:.3f} below")
    return "; ".join(found)


@evidence(Kind.COUNTEREXAMPLE, "kernel 1x1x3x3 uniform on (0, 1/2), as the source draws them")
def descent_stalls_where_sigma_min_vanishes(_: int) -> str:
    above, below = _ends_after_descent(np.random.default_rng(0).uniform(0.0, 0.5, (1, 1, 3, 3)))
    assert below > 0.99, f"sigma_min^2 = {1 - below:.4f}"
    assert above < 0.8 * below, f"{above:.4f} above, {below:.4f} below"
    return f"{above:.3f} above, {below:.4f} below: sigma_min is nearly 0, and so is its gradient"


def _ends_after_descent(kernel: Array) -> tuple[float, float]:
    """Return sigma_max^2 - 1 and 1 - sigma_min^2 where a descent with exact values and a line search ends."""
    result = convla.minimize_penalty(
        convla.ConvOperator(kernel, (5, 5)),
        iterations=200,
        tracker=Exact(cluster_rtol=0.02),
        step="backtracking",
        measure=False,
    )
    values = np.linalg.svd(result.operator.to_dense(), compute_uv=False)
    return float(values[0] ** 2) - 1, 1 - float(values[-1] ** 2)


STATEMENTS = (
    Statement(
        id="SPEC-sigma-min",
        number="ours",
        title="the symbol's smallest singular value and the matrix's",
        claim="The smallest singular value of the zero-padded operator is governed by that of its symbol.",
        verdict=Verdict.REFUTED,
        counterexample=r"Kernel (1, 1/2, 0): $|f|\ge 1/2$, but $\sigma_{\min}\le 2^{-n}$, because f winds around 0.",
        evidence=(tiny_singular_value_of_a_symbol_without_zeros,),
        functions=("convla.toeplitz_matrix",),
    ),
    Statement(
        id="SPEC-rate",
        number="ours",
        title="how the norm approaches the symbol's",
        claim=r"$\sup\|f\| - \sigma_{\max}(n) = O(1/n^2)$, with $\sigma_{\max}(n)^2 \approx S^2 + \frac{\pi^2}{2(n+1)^2}"
        r"\sum_j \partial_j^2\|f\|^2(\theta^*)$.",
        verdict=Verdict.STATISTICAL,
        evidence=(
            leading_term_of_a_known_spectrum,
            differences_fall_as_the_square_of_the_size,
            flat_maxima_have_no_leading_term,
        ),
        functions=("convla.asymptotic_largest_singular_value",),
        note="The leading term needs an isolated maximum with a definite Hessian and a simple singular value: symbols made "
        "flat by orthogonality have none.",
    ),
    Statement(
        id="SPEC-balance",
        number="ours",
        title="where the descent on the penalty ends",
        claim=r"At a minimiser of $R_\alpha$ with $\sigma_{\min} > 0$, for $M$ with at least as many rows as columns, $\sigma_{\max}^2 - \alpha = "
        r"\alpha - \sigma_{\min}^2$; so the power method on $M^TM - \alpha I$ has no single limit there.",
        verdict=Verdict.STATISTICAL,
        evidence=(
            scaling_turns_the_penalty_into_the_condition_number,
            ends_balance_where_the_descent_settles,
            descent_stalls_where_sigma_min_vanishes,
        ),
        functions=(
            "convla.minimize_penalty",
            "convla.penalties.pairs.pair_gradients",
        ),
        note=r"If only one end were active, scaling the kernel would lessen the penalty: RCK-scale. A "
        r"descent need not get there: with $\sigma_{\min}$ near 0 its gradient is near 0 as well, and it stalls.",
    ),
)
