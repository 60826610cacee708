"""Results of ours on the convolutional similarity: what it bounds, and how small it gets for kernels of unit norm."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

import convla
from convla import identities
from convla.testing import gamma
from convla.typing import Array
from proofs_checks.draws import floats, for_all, integers, pairs_and_inputs
from proofs_checks.polynomials import symbolic_kernels
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]


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


@evidence(Kind.PROOF, "N = 2: identity of polynomials in the four entries")
def two_taps_give_one_half(_: int) -> str:
    kernels = symbolic_kernels((2, 1, 2))
    a, b, c, d = kernels.ravel()
    # CS - |K1|^2 |K2|^2 / 2 = ((a^2 + b^2)(c^2 + d^2) + 4 a b c d) / 2, and that is a sum of squares.
    excess = 2 * convla.convolutional_similarity(kernels) - (a**2 + b**2) * (c**2 + d**2)
    assert excess == (a * c + b * d) ** 2 + (a * d + b * c) ** 2, excess
    assert identities.similarity_lower_bound(2) == 0.5
    return "2 CS - |K1|^2 |K2|^2 = (ac + bd)^2 + (ad + bc)^2, so c_2 = 1/2"


@evidence(Kind.PROOF, "N = 3: identities of polynomials in the six entries, sums of squares")
def three_taps_give_one_ninth(_: int) -> str:
    kernels = symbolic_kernels((2, 1, 3))
    a, b, c, x, y, z = kernels.ravel()
    r0, r1, r2 = a**2 + b**2 + c**2, a * b + b * c, a * c
    s, d, u, w = a + c, a - c, x + z, x - z
    excess = 9 * convla.convolutional_similarity(kernels) - r0 * (x**2 + y**2 + z**2)
    # K2 split into its even part (u, y) and its odd part w; the even part's square completed.
    even = (5 * s**2 - 8 * b**2) ** 2 + d**2 * (32 * s**2 + 46 * b**2) + 7 * d**4
    odd = 64 * b**2 + 36 * d**2 + 28 * (a**2 + c**2)
    assert 16 * r0 * excess == 2 * (8 * r0 * y + 9 * r1 * u) ** 2 + u**2 * even + r0 * w**2 * odd, "CS >= 1/9"
    assert r2 == a * c
    # (1, t, 1) and (1, -t, 1) with t^2 = 5/2 attain it.
    pair = np.fromiter((a, b, a, a, -b, a), dtype=object).reshape(2, 1, 3)  # as in `symbolic_kernels`, one by one
    excess = 9 * convla.convolutional_similarity(pair) - (2 * a**2 + b**2) ** 2
    assert excess == 2 * (5 * a**2 - 2 * b**2) ** 2, excess
    return "16 |K1|^2 (9 CS - |K1|^2 |K2|^2) is a sum of squares, and 0 at (1, t, 1), (1, -t, 1), t^2 = 5/2: c_3 = 1/9"


@evidence(Kind.PROPERTY, "integer kernels, N <= 8, exactly: CS times the reciprocal of the lower bound")
def lower_bound_on_integers(examples: int) -> str:
    def check(kernels: Array) -> None:
        norms = (kernels**2).sum(axis=-1).ravel()
        reciprocal = round(1 / identities.similarity_lower_bound(kernels.shape[-1]))
        assert reciprocal * int(convla.convolutional_similarity(kernels)) >= int(norms[0] * norms[1]), kernels

    return for_all(examples, st.tuples(st.integers(1, 8).flatmap(lambda taps: integers((2, 1, taps)))), check)


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
    halves = (("N = 1 .. 8", found[:8]), ("N = 9 .. 16", found[8:]))
    return "; ".join(f"{sizes}: c_N <= {', '.join(f'{value:.3g}' for value in values)}" for sizes, values in halves)


STATEMENTS = (
    Statement(
        id="CSM-bound",
        number="ours",
        title="what a small convolutional similarity is good for",
        claim=r"$|\langle F_1, F_2\rangle| \le \sqrt{CS(K_1, K_2)}\,\|(X \circledast X)_{[1-N,\,N-1]}\|$ for full "
        r"padding, with the norm over all pairs of channels; equality is attained.",
        verdict=Verdict.HOLDS,
        evidence=(cauchy_schwarz_on_integers, cauchy_schwarz_is_attained, cauchy_schwarz_in_floating_point),
        functions=(
            "convla.identities.input_energy",
            "convla.identities.feature_inner_product",
        ),
        note="Cauchy and Schwarz applied to CSM-6.",
    ),
    Statement(
        id="CSM-zero",
        number="ours",
        title="the least similarity of kernels of unit norm",
        claim=r"$c_N = \min\{CS(K_1, K_2) : \|K_1\| = \|K_2\| = 1\}$ is positive, at least "
        r"$1 / \big(\binom{2N-2}{N-1}\binom{N-1}{\lfloor (N-1)/2\rfloor}^2\big)$; $c_1 = 1$, $c_2 = \frac12$, "
        r"$c_3 = \frac19$, and it falls about tenfold with every tap.",
        verdict=Verdict.HOLDS,
        evidence=(
            two_taps_give_one_half,
            three_taps_give_one_ninth,
            lower_bound_on_integers,
            least_similarity_by_taps,
        ),
        functions=(
            "convla.identities.similarity_lower_bound",
            "convla.identities.least_similar_pair",
        ),
        note="So the unconstrained loss is 0 only where kernels vanish, and part of what CSM Tables 4 and 6 report is "
        "kernels shrinking: the controls of `convla reproduce` measure how much. The loss that divides by the norms has "
        r"no such escape. Each of the values found for N = 1 .. 16 is a proved upper bound of $c_N$.",
    ),
)
