"""CSM Sections 4.2 and 6.2: the condition S, the convolutional similarity, its forms and its convexity."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

import convla
from convla import identities
from convla.testing import gamma
from convla.typing import NumPyArray as Array
from proofs_checks.draws import for_all, integers, layers, pairs_and_inputs
from proofs_checks.polynomials import symbolic_kernels
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]


SYMBOLIC = ((2, 1, 2), (2, 1, 3), (3, 1, 2), (2, 2, 2), (3, 2, 2), (2, 1, 2, 2), (2, 2, 2, 2), (2, 1, 2, 2, 2))
"""Shapes (c_out, c_in, *kernel) at which identities are proved as identities of polynomials."""


@evidence(Kind.PROPERTY, "integer kernels with many zeros, 1 to 3 axes, several channels")
def extreme_entries_give_a_nonzero_product(examples: int) -> str:
    def check(k1: Array, k2: Array, _: Array) -> None:
        products = identities.kernel_correlation(k1, k2, stacks=True)
        for i, j in np.ndindex(products.shape[:2]):
            for c, d in np.ndindex(products.shape[2:4]):
                first, last = k1[i, c], k2[j, d]
                low, high = (np.argwhere(k)[[0, -1]] if k.any() else None for k in (first, last))
                if low is None or high is None:
                    assert not products[i, j, c, d].any()
                    continue
                # In lexicographic order only the last entry of K2 over the first of K1 reaches the last lag.
                lag = tuple(high[1] - low[0] + np.array(first.shape) - 1)
                wanted = first[tuple(low[0])] * last[tuple(high[1])]
                assert products[i, j, c, d][lag] == wanted != 0, (first, last)

    return for_all(examples, pairs_and_inputs(integers), check)


@evidence(Kind.PROOF, "all kernels with entries -1, 0, 1: every N <= 5, and 2x2")
def no_nonzero_kernels_satisfy_the_condition(_: int) -> str:
    count = 0
    for size in ((1,), (2,), (3,), (4,), (5,), (2, 2)):
        entries = np.array(list(itertools.product((-1, 0, 1), repeat=int(np.prod(size)))))
        kernels = entries[entries.any(axis=1)].reshape(-1, 1, *size)
        products = identities.kernel_correlation(kernels, kernels, stacks=True)
        norms = (products**2).reshape(len(kernels), len(kernels), -1).sum(axis=-1)
        assert norms.min() >= 1, f"two kernels of size {size} have similarity 0"
        count += norms.size
    return f"{count} pairs, none of similarity 0"


@evidence(Kind.PROPERTY, "integer kernels, one of them zero: the condition holds and feature maps are orthogonal")
def a_zero_kernel_makes_feature_maps_orthogonal(examples: int) -> str:
    def check(k1: Array, k2: Array, x: Array) -> None:
        zero = np.zeros_like(k2)
        assert not identities.kernel_correlation(k1, zero, stacks=True).any()
        assert not identities.feature_inner_product(k1, zero, x, stacks=True).any()
        assert (identities.kernel_correlation(k1, k2, stacks=True) != 0).any() == (k1.any() and k2.any())

    return for_all(examples, pairs_and_inputs(integers), check)


@evidence(Kind.PROOF, f"as polynomials in every entry, shapes {SYMBOLIC}")
def ordered_pairs_are_twice_the_unordered(_: int) -> str:
    for shape in SYMBOLIC:
        kernels = symbolic_kernels(shape)
        assert identities.ordered_pair_similarity(kernels) == 2 * convla.convolutional_similarity(kernels), shape
    return f"{len(SYMBOLIC)} identities of polynomials"


@evidence(Kind.PROPERTY, "integer layers, 1 to 4 kernels, 1 to 3 channels and axes")
def ordered_pairs_are_twice_the_unordered_on_integers(examples: int) -> str:
    def check(kernels: Array) -> None:
        assert identities.ordered_pair_similarity(kernels) == 2 * convla.convolutional_similarity(kernels), kernels

    return for_all(examples, layers(integers), check)


@evidence(Kind.COUNTEREXAMPLE, "two kernels (1, 2) and (3, -1)")
def the_printed_losses_differ(_: int) -> str:
    kernels = np.array([[[1, 2]], [[3, -1]]])
    ordered, unordered = (
        int(f(kernels)) for f in (identities.ordered_pair_similarity, convla.convolutional_similarity)
    )
    assert (ordered, unordered) == (76, 38)
    return f"Eq. (17) gives {ordered}, Eq. (19) {unordered}"


@evidence(Kind.PROOF, f"as polynomials in every entry, shapes {SYMBOLIC}")
def pairs_are_inner_products_of_autocorrelations(_: int) -> str:
    for shape in SYMBOLIC:
        kernels = symbolic_kernels(shape)
        pairwise = convla.convolutional_similarity(kernels, method="pairwise")
        assert pairwise == convla.convolutional_similarity(kernels, method="autocorrelation"), shape
    return f"{len(SYMBOLIC)} identities of polynomials"


@evidence(Kind.PROOF, f"as polynomials in every entry, shapes {SYMBOLIC[:6]}")
def gradient_is_the_derivative(_: int) -> str:
    for shape in SYMBOLIC[:6]:
        kernels = symbolic_kernels(shape)
        value = convla.convolutional_similarity(kernels, method="pairwise")
        gradient = convla.convolutional_similarity_gradient(kernels).ravel()
        assert all(gradient[i] == value.derivative(i) for i in range(gradient.size)), shape
    return f"{sum(int(np.prod(shape)) for shape in SYMBOLIC[:6])} derivatives of polynomials"


@evidence(
    Kind.PROPERTY, "integer layers: pairwise, autocorrelation and power-spectrum forms, and the gradient of the last"
)
def forms_agree_on_integers(examples: int) -> str:
    def check(kernels: Array) -> None:
        pairwise = int(convla.convolutional_similarity(kernels, method="pairwise"))
        assert pairwise == int(convla.convolutional_similarity(kernels)), kernels
        spectral = float(convla.convolutional_similarity(kernels.astype(np.float64), method="spectral"))
        assert abs(spectral - pairwise) <= _spectral_bound(kernels), f"{kernels}: {spectral} for {pairwise}"
        exact = convla.convolutional_similarity_gradient(kernels)
        slope = convla.convolutional_similarity_gradient(kernels.astype(np.float64), method="spectral")
        # With moduli of 1 at least, the derivative of a form of degree 4 is at most 4 times the form.
        bound = 4 * _spectral_bound(np.abs(kernels) + 1)
        assert np.abs(slope - exact).max() <= bound, f"{kernels}: gradient {slope} for {exact}"

    return for_all(examples, layers(integers), check)


def _spectral_bound(kernels: Array) -> float:
    """Bound the rounding error of the spectral form: relative to the similarity of the moduli, whose spectra bound.

    Each coefficient of the DFT is off by at most gamma of its terms (doubled: complex arithmetic) times the sum of
    moduli, however it is computed within a factor of log of its length; the value is of degree four in them.
    """
    taps, channels = int(np.prod(kernels.shape[2:])), kernels.shape[1]
    sums = np.abs(kernels).reshape(*kernels.shape[:2], -1).sum(axis=-1).astype(float)
    powers = (sums**2).sum(axis=1)
    largest = (powers.sum() ** 2 - (powers**2).sum()) / 2
    terms = 4 * (2 * taps + 8) + channels + kernels.shape[0] + 8**kernels.ndim
    return float(gamma(8 * terms, np.float64) * largest)


@evidence(Kind.COUNTEREXAMPLE, "N = 1: K1 = 2, K2 = 0 and K1 = 0, K2 = 2")
def midpoint_above_the_chord(_: int) -> str:
    one, other = np.array([[[2]], [[0]]]), np.array([[[0]], [[2]]])
    ends = [int(convla.convolutional_similarity(k)) for k in (one, other)]
    middle = int(convla.convolutional_similarity((one + other) // 2))
    assert middle > sum(ends) / 2, f"{middle} at the midpoint, {ends} at the ends"
    return f"{middle} at the midpoint of two points where it is {ends[0]} and {ends[1]}"


@evidence(Kind.PROPERTY, "integer layers: midpoints of two layers that differ in one kernel")
def convex_in_each_kernel(examples: int) -> str:
    def check(kernels: Array) -> None:
        for i, kernel in enumerate(kernels):
            other = kernel[..., ::-1] - 3

            def at(value: Array, i: int = i) -> int:
                return int(
                    convla.convolutional_similarity(np.concatenate((kernels[:i], value[None], kernels[i + 1 :])))
                )

            assert at(2 * kernel) + at(2 * other) >= 2 * at(kernel + other), (kernels, i)

    return for_all(examples, layers(integers, least=2), check)


@evidence(Kind.COUNTEREXAMPLE, "C = 2, N = 1: kernels (1; 1) and (1; -1)")
def equal_channels_do_not_suffice(_: int) -> str:
    kernels = np.array([[[1], [1]], [[1], [-1]]])
    same = int(identities.same_channel_similarity(kernels))
    every = int(convla.convolutional_similarity(kernels))
    x = np.array([[[1], [0]]])
    value = int(identities.feature_inner_product(kernels[:1], kernels[1:], x, stacks=True).item())
    assert (same, every, value) == (0, 4, 1), (same, every, value)
    return f"equal channels {same}, all pairs of channels {every}; X = (1; 0) gives <F1, F2> = {value}"


@evidence(Kind.PROPERTY, "integer layers of 1 to 5 channels, one and two axes: both losses by their sums, term by term")
def losses_by_definition(examples: int) -> str:
    def check(kernels: Array) -> None:
        size = kernels.shape[2:]
        lags = list(itertools.product(*(range(1 - n, n) for n in size)))

        def product(a: Array, b: Array, lag: tuple[int, ...]) -> int:
            total = 0
            for place in np.ndindex(size):
                other = tuple(i + t for i, t in zip(place, lag, strict=True))
                if all(0 <= i < n for i, n in zip(other, size, strict=True)):
                    total += int(a[place]) * int(b[other])
            return total

        same = every = 0
        for (i, first), (j, second) in itertools.combinations(enumerate(kernels), 2):
            for lag in lags:
                table = [[product(a, b, lag) for b in second] for a in first]
                same += sum(table[c][c] for c in range(len(table))) ** 2
                every += sum(entry**2 for row in table for entry in row)
                assert i < j
        assert int(identities.same_channel_similarity(kernels)) == same, kernels
        assert int(convla.convolutional_similarity(kernels)) == every, kernels

    shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.sampled_from([(1,), (3,), (2, 2)]))
    strategy = st.tuples(shapes.flatmap(lambda s: integers((s[0], s[1], *s[2]), 5)))
    return for_all(examples, strategy, check)


@evidence(
    Kind.PROPERTY,
    "integer layers and their float64 copies, every method and engine: ordered pairs, the pairs divided by their norms, and "
    "gradients of both",
)
def options_by_definition(examples: int) -> str:
    def check(kernels: Array) -> None:
        ordered = int(identities.ordered_pair_similarity(kernels))
        exact = convla.convolutional_similarity_gradient(kernels)
        assert int(convla.convolutional_similarity(kernels, pairs="ordered")) == ordered, kernels
        assert np.array_equal(convla.convolutional_similarity_gradient(kernels, pairs="ordered"), 2 * exact), kernels
        assert np.array_equal(convla.convolutional_similarity_gradient(kernels, method="pairwise"), exact), kernels
        norms = (kernels**2).reshape(len(kernels), -1).sum(axis=1)
        floats = kernels.astype(np.float64)
        bound = _spectral_bound(np.abs(kernels) + 1)
        # The sum over pairs of CS / (|K_i|^2 |K_j|^2), each pair a layer of its own.
        terms = [
            Fraction(int(convla.convolutional_similarity(kernels[[i, j]])), int(norms[i] * norms[j]))
            for i, j in itertools.combinations(range(len(kernels)), 2)
            if norms[i] and norms[j]
        ]
        for method, engine in (
            ("autocorrelation", "reference"),
            ("autocorrelation", "numba"),
            ("spectral", "auto"),
            ("pairwise", "auto"),
        ):
            options = {"method": method, "engine": engine}
            value = float(convla.convolutional_similarity(floats, **options))  # type: ignore[arg-type]
            assert abs(value - ordered / 2) <= bound, (kernels, options)
            slope = convla.convolutional_similarity_gradient(floats, **options)  # type: ignore[arg-type]
            assert np.abs(slope - exact).max() <= 4 * bound, (kernels, options)
            if norms.all():
                unit = float(convla.convolutional_similarity(floats, normalized=True, **options))  # type: ignore[arg-type]
                assert (
                    abs(unit - float(sum(terms)))
                    <= gamma(8 * kernels.size, np.float64) * 64 * len(kernels) ** 2 * kernels.size
                ), kernels
                along = convla.convolutional_similarity_gradient(floats, normalized=True, **options)  # type: ignore[arg-type]
                # Homogeneous of degree 0 in each kernel: no part along it, and the scale of the whole does not matter.
                inner = np.abs((along * floats).reshape(len(kernels), -1).sum(axis=1)).max()
                assert inner <= gamma(64 * kernels.size, np.float64) * 64 * len(kernels) ** 2 * kernels.size, kernels
                if method == "autocorrelation" and len(kernels) > 1:
                    step = 1e-5
                    moved = floats + step * np.sign(exact - 0.5)
                    change = float(convla.convolutional_similarity(moved, normalized=True, **options)) - unit  # type: ignore[arg-type]
                    predicted = float(np.sum(along * (moved - floats)))
                    assert abs(change - predicted) <= 1e3 * step**2 * kernels.size * len(kernels) ** 2 + 1e-9, (
                        kernels,
                        change,
                    )

    return for_all(examples, layers(lambda shape: integers(shape, 5)), check)


@evidence(Kind.PROPERTY, "integer layers: with one channel both losses are one")
def losses_agree_for_one_channel(examples: int) -> str:
    def check(kernels: Array) -> None:
        first = kernels[:, :1]
        assert identities.same_channel_similarity(first) == convla.convolutional_similarity(first), first

    return for_all(examples, layers(integers), check)


STATEMENTS = (
    Statement(
        id="CSM-15",
        number="Eq. (15)",
        title="the sufficient condition for orthogonal feature maps",
        claim=r"Kernels with $(K_1 \circledast K_2)[n] = 0$ for every $n \in [1-N, N-1]$ give orthogonal feature maps for "
        r"every input.",
        verdict=Verdict.HOLDS,
        evidence=(
            a_zero_kernel_makes_feature_maps_orthogonal,
            extreme_entries_give_a_nonzero_product,
            no_nonzero_kernels_satisfy_the_condition,
        ),
        functions=(
            "convla.identities.kernel_correlation",
            "convla.identities.feature_inner_product",
        ),
        note="True but void: a cross-correlation is a product of Laurent polynomials, and vanishes only if one of the "
        "kernels is zero, in any number of dimensions. Of its entries the one at the extreme lag is the product of an "
        "extreme entry of each kernel. So a minimiser of the loss alone has a zero kernel; see CSM-zero.",
    ),
    Statement(
        id="CSM-17",
        number="Eqs. (16), (17), (19), (20)",
        title="two printed forms of the loss",
        claim=r"$L_{CS}$ over ordered pairs, Eq. (17), is $L_{CS}$ over unordered pairs, Eq. (19).",
        verdict=Verdict.CORRECTED,
        correction="Eq. (17) is twice Eq. (19). The sum in Eq. (16) starts at 1 - N; N - 1 is printed.",
        evidence=(
            ordered_pairs_are_twice_the_unordered,
            ordered_pairs_are_twice_the_unordered_on_integers,
            options_by_definition,
            the_printed_losses_differ,
        ),
        functions=(
            "convla.identities.ordered_pair_similarity",
            "convla.convolutional_similarity",
        ),
    ),
    Statement(
        id="CSM-ocnn",
        number="Section 4.2.2",
        title="equal channels against all pairs of channels",
        claim=r"$\sum_{i<j}\|\sum_c K_i[c] \circledast K_j[c]\|^2 = 0$, the loss of orthogonal networks off its "
        r"diagonal, does not make feature maps orthogonal; $L_{CS}$ takes all pairs of channels.",
        verdict=Verdict.HOLDS,
        evidence=(equal_channels_do_not_suffice, losses_by_definition, losses_agree_for_one_channel),
        functions=("convla.identities.same_channel_similarity",),
    ),
    Statement(
        id="CSM-convex",
        number="Section 6.2",
        title="convexity of the convolutional similarity",
        claim=r"$(K_1, \dots, K_S) \mapsto L_{CS}$ is convex.",
        verdict=Verdict.REFUTED,
        counterexample="N = 1: $(ab)^2$ is 1 at (1, 1), the midpoint of (2, 0) and (0, 2), where it is 0. In each kernel "
        "alone, the others fixed, it is convex: a positive semidefinite quadratic form.",
        evidence=(midpoint_above_the_chord, convex_in_each_kernel),
        functions=("convla.convolutional_similarity",),
    ),
    Statement(
        id="CSM-linear",
        number="ours",
        title="the loss without pairs",
        claim=r"With $A_i = \sum_c K_i[c] \circledast K_i[c]$, $\sum_{c,d}\|K_i[c] \circledast K_j[d]\|^2 = \langle A_i, "
        r"A_j\rangle$, so $L_{CS} = \frac12(\|\sum_i A_i\|^2 - \sum_i \|A_i\|^2)$; in a DFT of $2N-1$ points it is a sum "
        r"of products of power spectra; $\partial L_{CS}/\partial K_i[c][q] = 2\sum_t \sum_{j\ne i} A_j[t] K_i[c][q+t]$.",
        verdict=Verdict.HOLDS,
        evidence=(
            pairs_are_inner_products_of_autocorrelations,
            gradient_is_the_derivative,
            forms_agree_on_integers,
            options_by_definition,
        ),
        functions=(
            "convla.convolutional_similarity",
            "convla.convolutional_similarity_gradient",
        ),
        note="Linear in the number of kernels where the definition is quadratic, and without cancellation in the form "
        "of power spectra. For full padding only.",
    ),
)
