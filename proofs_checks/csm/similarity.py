"""CSM Sections 4.2 and 6.2: the condition S, the convolutional similarity and its convexity, and bounds of ours."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

import convla
from convla import identities
from convla.testing import gamma
from convla.typing import Array
from proofs_checks.csm.full import INNER_PRODUCTS
from proofs_checks.draws import floats, for_all, integers, layers, pairs_and_inputs
from proofs_checks.polynomials import symbolic_kernels
from proofs_checks.statement import Kind, Mutation, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]

FORMS = "convla.identities.kernel_similarity"
SIMILARITY = "convla.similarity.layer"

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


@evidence(Kind.PROPERTY, "integer layers: pairwise, autocorrelation and power-spectrum forms")
def forms_agree_on_integers(examples: int) -> str:
    def check(kernels: Array) -> None:
        pairwise = int(convla.convolutional_similarity(kernels, method="pairwise"))
        assert pairwise == int(convla.convolutional_similarity(kernels)), kernels
        spectral = float(convla.convolutional_similarity(kernels.astype(np.float64), method="spectral"))
        assert abs(spectral - pairwise) <= _spectral_bound(kernels), f"{kernels}: {spectral} for {pairwise}"

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


@evidence(Kind.PROPERTY, "integer kernels and inputs, exactly: 1 to 3 axes, several channels")
def cauchy_schwarz_on_integers(examples: int) -> str:
    def check(k1: Array, k2: Array, x: Array) -> None:
        values = identities.feature_inner_product(k1, k2, x, stacks=True)
        products = identities.kernel_correlation(k1, k2, stacks=True)
        similarity = (products**2).reshape(*products.shape[:2], -1).sum(axis=-1)
        energy = identities.input_energy(x, tuple(n - 1 for n in k1.shape[2:]), channels=True)
        assert (values**2 <= similarity[None] * energy[:, None, None]).all(), (k1, k2, x)

    return for_all(examples, pairs_and_inputs(integers), check)


@evidence(Kind.PROPERTY, "float64 with large and subnormal entries, within rounding")
def cauchy_schwarz_in_floating_point(examples: int) -> str:
    def check(k1: Array, k2: Array, x: Array) -> None:
        k1, k2, x = (array / max(1.0, float(np.abs(array).max()) / 1e30) for array in (k1, k2, x))
        values = np.abs(identities.feature_inner_product(k1, k2, x, stacks=True))
        products = identities.kernel_correlation(k1, k2, stacks=True)
        similarity = (products**2).reshape(*products.shape[:2], -1).sum(axis=-1)
        energy = identities.input_energy(x, tuple(n - 1 for n in k1.shape[2:]), channels=True)
        bound = np.sqrt(similarity)[None] * np.sqrt(energy)[:, None, None]
        sizes = [np.abs(array).sum() for array in (k1, k2, x, x)]
        slack = gamma(10_000, np.float64) * (bound + values) + 1e-155 * float(np.prod([1 + size for size in sizes]))
        assert (values <= bound + slack).all(), (k1, k2, x)

    return for_all(examples, pairs_and_inputs(floats), check)


@evidence(Kind.COUNTEREXAMPLE, "N = 1: equality, so that no smaller constant will do")
def cauchy_schwarz_is_attained(_: int) -> str:
    value = int(identities.feature_inner_product([2], [3], [1, 2]))
    similarity = int(convla.convolutional_similarity(np.array([[[2]], [[3]]])))
    energy = int(identities.input_energy([1, 2], (0,)))
    assert value**2 == similarity * energy == 900
    return f"{value}^2 = {similarity} * {energy}"


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


@evidence(Kind.PROPERTY, "integer layers: with one channel both losses are one")
def losses_agree_for_one_channel(examples: int) -> str:
    def check(kernels: Array) -> None:
        first = kernels[:, :1]
        assert identities.same_channel_similarity(first) == convla.convolutional_similarity(first), first

    return for_all(examples, layers(integers), check)


@evidence(Kind.PROOF, "N = 2: identity of polynomials in the four entries")
def two_taps_give_one_half(_: int) -> str:
    kernels = symbolic_kernels((2, 1, 2))
    a, b, c, d = kernels.ravel()
    # CS - |K1|^2 |K2|^2 / 2 = ((a^2 + b^2)(c^2 + d^2) + 4 a b c d) / 2, and that is a sum of squares.
    excess = 2 * convla.convolutional_similarity(kernels) - (a**2 + b**2) * (c**2 + d**2)
    assert excess == (a * c + b * d) ** 2 + (a * d + b * c) ** 2, excess
    assert identities.similarity_lower_bound(2) == 0.5
    return "2 CS - |K1|^2 |K2|^2 = (ac + bd)^2 + (ad + bc)^2, so c_2 = 1/2"


@evidence(Kind.PROPERTY, "integer kernels, N <= 8, exactly: CS times the reciprocal of the lower bound")
def lower_bound_on_integers(examples: int) -> str:
    def check(k1: Array, k2: Array, _: Array) -> None:
        if k1.ndim != 3 or k1.shape[1] != 1:
            return
        products = identities.kernel_correlation(k1, k2, stacks=True)
        similarity = (products**2).reshape(*products.shape[:2], -1).sum(axis=-1)
        norms = (k1**2).sum(axis=(1, 2))[:, None] * (k2**2).sum(axis=(1, 2))[None, :]
        assert (round(1 / identities.similarity_lower_bound(k1.shape[2])) * similarity >= norms).all(), (k1, k2)

    return for_all(examples, pairs_and_inputs(integers), check)


@evidence(Kind.MEASUREMENT, "N = 1 .. 16: exact rational values at the best pairs found, above the lower bound")
def least_similarity_by_taps(_: int) -> str:
    found: list[float] = []
    for taps in range(1, 17):
        pair = identities.least_similar_pair(taps, starts=8, sweeps=60)
        # Integers near the pair give a rational value: exact, so a true upper bound of the minimum.
        k1, k2 = (np.array([round(v * 2**40) for v in k], dtype=object) for k in pair)
        products = identities.kernel_correlation(k1, k2)
        value = Fraction(int((products * products).sum()), int((k1 * k1).sum()) * int((k2 * k2).sum()))
        lower = identities.similarity_lower_bound(taps)
        assert lower <= float(value) * (1 + 1e-9), f"N = {taps}: {float(value)} below the lower bound {lower}"
        found.append(float(value))
    assert abs(found[1] - 1 / 2) < 1e-9, f"c_2 = {found[1]}"
    assert abs(found[2] - 1 / 9) < 1e-9, f"c_3 = {found[2]}"
    assert all(later < earlier / 2 for earlier, later in itertools.pairwise(found[1:])), "c_N falls by more than half"
    return "c_N <= " + ", ".join(f"{value:.3g}" for value in found)


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
        mutations=(
            Mutation(f"{INNER_PRODUCTS}:kernel_correlation", "for k in (k2, k1)", "for k in (k1, k2)"),
            Mutation(f"{INNER_PRODUCTS}:kernel_correlation", 'padding="full"', 'padding="same"'),
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
            the_printed_losses_differ,
        ),
        mutations=(
            Mutation(f"{FORMS}:ordered_pair_similarity", "(1 - own)", "(2 - own)"),
            Mutation(
                f"{SIMILARITY}:_exact", "value = xp.sum(signatures * before)", "value = 2 * xp.sum(signatures * before)"
            ),
        ),
    ),
    Statement(
        id="CSM-ocnn",
        number="Section 4.2.2",
        title="equal channels against all pairs of channels",
        claim=r"$\sum_{i<j}\|\sum_c K_i[c] \circledast K_j[c]\|^2 = 0$, the loss of orthogonal networks off its "
        r"diagonal, does not make feature maps orthogonal; $L_{CS}$ takes all pairs of channels.",
        verdict=Verdict.HOLDS,
        evidence=(equal_channels_do_not_suffice, losses_agree_for_one_channel),
        mutations=(
            Mutation(f"{FORMS}:same_channel_similarity", "summed + products", "summed - products"),
            Mutation(f"{FORMS}:same_channel_similarity", "k=1", "k=0"),
        ),
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
        mutations=(
            Mutation(
                f"{SIMILARITY}:_exact", "value = xp.sum(signatures * before)", "value = -xp.sum(signatures * before)"
            ),
        ),
    ),
    Statement(
        id="CSM-bound",
        number="ours",
        title="what a small convolutional similarity is good for",
        claim=r"$|\langle F_1, F_2\rangle| \le \sqrt{CS(K_1, K_2)}\,\|(X \circledast X)_{[1-N,\,N-1]}\|$ for full "
        r"padding, with the norm over all pairs of channels; equality is attained.",
        verdict=Verdict.HOLDS,
        evidence=(cauchy_schwarz_on_integers, cauchy_schwarz_is_attained, cauchy_schwarz_in_floating_point),
        mutations=(
            Mutation(f"{INNER_PRODUCTS}:input_energy", "lags * lags", "lags"),
            Mutation(f"{INNER_PRODUCTS}:input_energy", "lags * lags", "2 * lags * lags"),
        ),
        note="Cauchy and Schwarz applied to CSM-6.",
    ),
    Statement(
        id="CSM-linear",
        number="ours",
        title="the loss without pairs",
        claim=r"With $A_i = \sum_c K_i[c] \circledast K_i[c]$, $\sum_{c,d}\|K_i[c] \circledast K_j[d]\|^2 = \langle A_i, "
        r"A_j\rangle$, so $L_{CS} = \frac12(\|\sum_i A_i\|^2 - \sum_i \|A_i\|^2)$; in a DFT of $2N-1$ points it is a sum "
        r"of products of power spectra; $\partial L_{CS}/\partial K_i[c][q] = 2\sum_t \sum_{j\ne i} A_j[t] K_i[c][q+t]$.",
        verdict=Verdict.HOLDS,
        evidence=(pairs_are_inner_products_of_autocorrelations, gradient_is_the_derivative, forms_agree_on_integers),
        mutations=(
            Mutation(
                "convla.similarity.signatures:sums_of_others",
                "before = xp.cumulative_sum(signatures, axis=axis, include_initial=True)[..., :-1, :]",
                "before = xp.cumulative_sum(signatures, axis=axis)",
            ),
            Mutation(
                "convla.similarity.signatures:sums_of_others",
                "before + xp.flip(reverse, axis=axis)",
                "xp.flip(reverse, axis=axis)",
            ),
            Mutation(
                f"{SIMILARITY}:_floating",
                "value = xp.sum(signatures * before)",
                "value = 0.99 * xp.sum(signatures * before)",
            ),
        ),
        note="Linear in the number of kernels where the definition is quadratic, and without cancellation in the form "
        "of power spectra. For full padding only.",
    ),
    Statement(
        id="CSM-zero",
        number="ours",
        title="the least similarity of kernels of unit norm",
        claim=r"$c_N = \min\{CS(K_1, K_2) : \|K_1\| = \|K_2\| = 1\}$ is positive, at least "
        r"$1 / \big(\binom{2N-2}{N-1}\binom{N-1}{\lfloor (N-1)/2\rfloor}^2\big)$; $c_1 = 1$, $c_2 = \frac12$, "
        r"$c_3 \le \frac19$, and it falls about tenfold with every tap.",
        verdict=Verdict.HOLDS,
        evidence=(two_taps_give_one_half, lower_bound_on_integers, least_similarity_by_taps),
        mutations=(
            Mutation(f"{FORMS}:similarity_lower_bound", "math.comb(2 * degree, degree)", "degree"),
            Mutation(f"{FORMS}:_best_partner", "vectors[:, -1, ::-1]", "vectors[:, 0, ::-1]"),
        ),
        note="So the unconstrained loss is 0 only where kernels vanish, and part of what CSM Tables 4 and 6 report is "
        "kernels shrinking: the controls of `convla reproduce` measure how much. The loss that divides by the norms has "
        "no such escape. Best values found for N = 1 .. 16: 1, 0.5, 0.111, 0.0174, 2.34e-3, 2.90e-4, 3.42e-5, 3.91e-6, 4.36e-7, "
        "4.78e-8, 5.18e-9, 5.55e-10, 5.89e-11, 6.20e-12, 6.49e-13, 6.76e-14, each a proved upper bound.",
    ),
)
