"""CSM Sections 3 to 4.2: definitions, the inner-product identity for full padding, and Lemmas 4.1 to 4.3."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

import convla
from convla import identities
from convla.testing import gamma
from convla.typing import AnyArray, Padding
from convla.typing import NumPyArray as Array
from proofs_checks.bases import agree_on_all_bases, quadratic_basis, unit_kernels, vector_sizes
from proofs_checks.draws import floats, for_all, integers, pairs_and_inputs
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["PLANES", "STATEMENTS", "TABLE_SIZES", "inner_product_bound", "printed_sum"]

TABLE_SIZES = ((3, 64), (9, 64), (16, 64))
"""The sizes (N, M) of CSM Tables 1-6."""

PLANES = (((1, 2), (2, 2)), ((2, 2), (3, 3)), ((2, 3), (3, 3)), ((3, 3), (4, 4)), ((2, 2, 2), (2, 3, 2)))
"""Sizes of kernels and inputs with two and three axes."""


def printed_sum(kernel: Array, x: Array, i: int, sign: int) -> int:
    """Evaluate a sum over all integers as printed, with entries outside the vectors zero."""
    return sum(int(k) * int(x[i + sign * n]) for n, k in enumerate(kernel) if 0 <= i + sign * n < x.size)


@evidence(Kind.PROOF, "all unit K and X, every N <= 6, M <= 10; ranges full, valid and, for odd N, same")
def definitions_on_the_bases(_: int) -> str:
    count = 0
    for n, m in vector_sizes(6, 10):
        kernels, inputs = unit_kernels(1, (n,)), unit_kernels(1, (m,))
        ranges: dict[Padding, range] = {"full": range(m + n - 1)}
        if m >= n:
            ranges["valid"] = range(n - 1, m)
        if n % 2:
            ranges["same"] = range((n - 1) // 2, m + (n - 1) // 2)
        for padding, outputs in ranges.items():
            crossed = convla.cross_correlate(inputs, kernels, padding=padding)
            convolved = convla.convolve(inputs, kernels, padding=padding)
            for (a, k), (b, x) in itertools.product(enumerate(kernels[:, 0]), enumerate(inputs[:, 0])):
                assert [printed_sum(k, x, i - n + 1, +1) for i in outputs] == crossed[b, a].tolist(), (padding, k, x)
                assert [printed_sum(k, x, i, -1) for i in outputs] == convolved[b, a].tolist(), (padding, k, x)
                count += 2
    return f"{count} feature maps equal"


@evidence(
    Kind.PROOF, "all unit K and X, every N <= 6, M <= 10: the sums to N as printed, K[N] = 0 by the source's convention"
)
def printed_upper_limit_adds_nothing(_: int) -> str:
    count = 0
    for n, m in vector_sizes(6, 10):
        kernels, inputs = unit_kernels(1, (n,)), unit_kernels(1, (m,))
        longer = np.concatenate((kernels, np.zeros((n, 1, 1), np.int64)), axis=2)
        crossed = convla.cross_correlate(inputs, kernels, padding="full")
        convolved = convla.convolve(inputs, kernels, padding="full")
        for (a, k), (b, x) in itertools.product(enumerate(longer[:, 0]), enumerate(inputs[:, 0])):
            outputs = range(m + n - 1)
            assert [printed_sum(k, x, i - n + 1, +1) for i in outputs] == crossed[b, a].tolist(), (k, x)
            assert [printed_sum(k, x, i, -1) for i in outputs] == convolved[b, a].tolist(), (k, x)
            count += 2
    return f"{count} feature maps equal"


@evidence(Kind.COUNTEREXAMPLE, "N = 2, M = 2: no padding on both sides alike leaves the size")
def even_kernels_have_no_same_range(_: int) -> str:
    outputs = [convla.cross_correlate(np.eye(1, 2), np.ones((1, 1, 2)), padding=p).shape[-1] for p in (0, 1)]
    assert outputs == [1, 3], outputs
    return "padding 0 leaves 1 output of 2, padding 1 leaves 3: (N - 1) / 2 is no integer"


@evidence(Kind.COUNTEREXAMPLE, "N = 2: K1 = (1, 0), K2 = (0, 1)")
def operands_swap_between_equations(_: int) -> str:
    k1, k2 = [1, 0], [0, 1]
    used = identities.kernel_correlation(k1, k2).tolist()  # the sum of K1[n] K2[n + t] under Eq. (13)
    defined = identities.kernel_correlation(k2, k1).tolist()  # Eq. (2) with X = K1, K = K2
    assert used == [0, 0, 1], used
    assert defined == [1, 0, 0], defined
    return f"Eq. (13) uses {used}, Eq. (2) defines {defined}"


@evidence(Kind.PROOF, "all unit K1, K2, every N <= 8 and 16; 2-D up to 3x3, 3-D 2x2x2, against the definition")
def swapping_kernels_reverses_lags(_: int) -> str:
    count = 0
    for size in [(n,) for n in (*range(1, 9), 16)] + [kernel for kernel, _ in PLANES]:
        kernels = unit_kernels(1, size)
        forward = identities.kernel_correlation(kernels, kernels, stacks=True)
        for (a, k1), (b, k2) in itertools.product(enumerate(kernels[:, 0]), repeat=2):
            # The one product of two unit kernels is at the lag that leads from the one to the other.
            lag = np.argwhere(k2)[0] - np.argwhere(k1)[0] + np.array(size) - 1
            assert forward[a, b, 0, 0][tuple(lag)] == forward[a, b].sum() == 1, (k1, k2)
        back = forward.swapaxes(0, 1)
        reversed_lags = back[(..., *(slice(None, None, -1),) * len(size))]
        assert np.array_equal(forward, reversed_lags), size
        count += forward[..., 0].size
    return f"{count} values equal"


@evidence(Kind.PROPERTY, "integer kernels, 1 to 3 axes")
def similarity_is_symmetric(examples: int) -> str:
    def check(k1: Array, k2: Array, _: Array) -> None:
        one = identities.kernel_correlation(k1, k2, stacks=True)
        other = identities.kernel_correlation(k2, k1, stacks=True)
        assert (one**2).sum() == (other**2).sum(), (k1, k2)

    return for_all(examples, pairs_and_inputs(integers), check)


@evidence(Kind.PROOF, "all basis inputs, every N <= 8, M <= 16, and (N, M) = (3, 64), (9, 64), (16, 64)")
def full_identity_on_vectors(_: int) -> str:
    count = 0
    for n, m in (*vector_sizes(8, 16), *TABLE_SIZES):
        count += agree_on_all_bases(_features, _lags, 1, (n,), (m,))
    x = np.arange(1, 6)
    for reach in range(7):
        whole = identities.autocorrelation(x[None], (reach,), channels=True)[0, 0]
        assert np.array_equal(identities.autocorrelation(x, (reach,)), whole), reach
    return f"{count} integer equalities"


@evidence(Kind.PROOF, "all basis inputs: 2-D up to 3x3 on 4x4, 3-D 2x2x2 on 2x3x2; C = 2 channels: N <= 3, M <= 5")
def full_identity_on_planes_and_channels(_: int) -> str:
    count = sum(agree_on_all_bases(_features, _lags, 1, kernel, image) for kernel, image in PLANES)
    for n, m in vector_sizes(3, 5):
        count += agree_on_all_bases(_features, _lags, 2, (n,), (m,))
    return f"{count} integer equalities"


@evidence(Kind.PROPERTY, "float64 within the rounding errors of both sides: ill-scaled, subnormal, size-1 axes, even N")
def full_identity_in_floating_point(examples: int) -> str:
    def check(k1: Array, k2: Array, x: Array) -> None:
        error = np.abs(_features(k1, k2, x) - _lags(k1, k2, x))
        bound = inner_product_bound(k1, k2, x)
        assert (error <= bound).all(), f"off by {error.max()} beyond {bound.min()}: {k1}, {k2}, {x}"

    return for_all(examples, pairs_and_inputs(floats), check)


def inner_product_bound(k1: Array, k2: Array, x: Array) -> Array:
    """Bound the difference of the two sides, each computed in float64, that are equal in exact arithmetic.

    A value is a sum of products of four entries. Feature maps: dot products of C * taps terms, then one over the
    outputs; lags: sums over inputs and over taps, then one over lags and channel pairs. Whatever the order, the error
    of each is gamma of its number of operations times the same form in the moduli (Higham, Section 3.1). Products that
    underflow lose at most the smallest subnormal each, then grow by the other factors.
    """
    channels, taps, positions = k1.shape[1], math.prod(k1.shape[2:]), math.prod(x.shape[2:])
    lags = math.prod(2 * n - 1 for n in k1.shape[2:])
    outputs = math.prod(n + m - 1 for n, m in zip(k1.shape[2:], x.shape[2:], strict=True))
    operations = 2 * channels * taps + outputs + positions + taps + channels**2 * lags + 8
    moduli = [np.abs(array) for array in (k1, k2, x)]
    size = identities.feature_inner_product(*moduli, stacks=True)
    largest = math.prod(1.0 + float(array.max()) for array in moduli) * (1.0 + float(moduli[2].max()))
    products = (channels * taps) ** 2 * positions * outputs * lags
    bound: Array = 2 * gamma(operations, np.float64) * size + 4 * products * largest * 5e-324
    return bound


def _features(k1: Array, k2: Array, x: Array) -> AnyArray:
    return identities.feature_inner_product(k1, k2, x, padding="full", stacks=True)


def _lags(k1: Array, k2: Array, x: Array) -> AnyArray:
    return identities.correlation_inner_product(k1, k2, x, stacks=True)


@evidence(Kind.PROOF, "the printed index sets, all unit K1, K2, every N <= 12")
def out_of_range_terms_are_empty(_: int) -> str:
    terms = 0
    for n in range(1, 13):
        inside = range(n)
        a = [(n1, n2) for n1 in range(1, n) for n2 in range(n - n1, n)]
        b = [(n1, n2) for n1 in range(n - 1) for n2 in range(1 - n, -n1)]
        assert all(n1 + n2 not in inside for n1, n2 in a + b), n
        # With A and B the double sum over all lags is Eq. (10)'s over the lags inside: together every (n1, n2) once.
        eq10 = [(n1, n2) for n1 in inside for n2 in range(-n1, n - n1)]
        full = set(itertools.product(inside, range(1 - n, n)))
        assert sorted(a + b + eq10) == sorted(full), n
        # Eq. (10) at each lag, for unit kernels: 1 at (n1, n1 + n2), n2 the lag.
        wanted = np.zeros((n, n, 2 * n - 1), np.int64)
        for n1, n2 in eq10:
            wanted[n1, n1 + n2, n2 + n - 1] = 1
        products = identities.kernel_correlation(unit_kernels(1, (n,)), unit_kernels(1, (n,)), stacks=True)
        assert np.array_equal(products[:, :, 0, 0], wanted), n
        terms += len(a + b)
    return f"{terms} terms, all outside the kernel"


@evidence(Kind.PROOF, "all basis inputs, every N <= 8, M <= 16, and N = 3, 9, 16 with M = 64; 2-D and 3-D; one channel")
def convolution_gives_the_same_inner_product(_: int) -> str:
    def convolved(k1: Array, k2: Array, x: Array) -> AnyArray:
        return identities.feature_inner_product(k1, k2, x, operation="convolution", stacks=True)

    count = 0
    for n, m in vector_sizes(3, 4):  # it is a convolution, by the printed sums
        for (a, k1), (b, k2), x in itertools.product(
            enumerate(unit_kernels(1, (n,))), enumerate(unit_kernels(1, (n,))), next(quadratic_basis(1, (m,), 1 << 12))
        ):
            f1, f2 = ([printed_sum(k[0], x[0], i, -1) for i in range(m + n - 1)] for k in (k1, k2))
            value = identities.feature_inner_product(k1[0], k2[0], x[0], operation="convolution")
            assert int(value) == int(np.dot(f1, f2)), (a, b, x)
            valid = identities.feature_inner_product(k1[0], k2[0], x[0], padding=n - 1, operation="convolution")
            assert value == valid, (a, b, x)
    for n, m in (*vector_sizes(8, 16), *TABLE_SIZES):
        count += agree_on_all_bases(_features, convolved, 1, (n,), (m,))
    count += sum(agree_on_all_bases(_features, convolved, 1, kernel, image) for kernel, image in PLANES)
    return f"{count} integer equalities"


@evidence(Kind.COUNTEREXAMPLE, "C = 2, N = 2, M = 2: exhaustive over unit kernels and 0/1 inputs")
def convolution_differs_with_two_channels(_: int) -> str:
    kernels = unit_kernels(2, (2,))
    for entries in sorted(itertools.product((0, 1), repeat=4), key=sum):
        x = np.array(entries).reshape(1, 2, 2)
        crossed = _features(kernels, kernels, x)[0]
        convolved = identities.feature_inner_product(kernels, kernels, x, operation="convolution", stacks=True)[0]
        assert np.array_equal(crossed, _lags(kernels, kernels, x)[0]), "Eq. (6) for cross-correlation"
        if not np.array_equal(crossed, convolved):
            a, b = np.argwhere(crossed != convolved)[0]
            return (
                f"K1 = {kernels[a].tolist()}, K2 = {kernels[b].tolist()}, X = {x[0].tolist()}: cross-correlation "
                f"{crossed[a, b]}, convolution {convolved[a, b]}"
            )
    raise AssertionError("full convolution and cross-correlation agree on every 0/1 input with two channels")


@evidence(Kind.PROOF, "all basis inputs, C = 2, N <= 3, M <= 4: transposing the pairs of channels mends it")
def convolution_transposes_the_channel_pairs(_: int) -> str:
    def swapped(k1: Array, k2: Array, x: Array) -> AnyArray:
        # <K1[c] (x) K2[d], X[d] (x) X[c]>: the kernels' products against the input's with its channels exchanged.
        products = identities.kernel_correlation(k1, k2, stacks=True)
        lags = identities.autocorrelation(x, tuple(n - 1 for n in k1.shape[2:]), channels=True).swapaxes(1, 2)
        return np.tensordot(lags, products, axes=(range(1, lags.ndim), range(2, products.ndim)))

    def convolved(k1: Array, k2: Array, x: Array) -> AnyArray:
        return identities.feature_inner_product(k1, k2, x, operation="convolution", stacks=True)

    return f"{sum(agree_on_all_bases(convolved, swapped, 2, (n,), (m,)) for n, m in vector_sizes(3, 4))} equalities"


@evidence(Kind.PROOF, "all basis inputs, every N <= 8, M <= 16, and N = 3, 9, 16 with M = 64; 2-D and 3-D")
def centre_lag_is_the_kernel_similarity(_: int) -> str:
    def split(k1: Array, k2: Array, x: Array) -> AnyArray:
        kernels = k1.reshape(k1.shape[0], -1)
        energy = (x**2).sum(axis=tuple(range(1, x.ndim)))
        return energy[:, None, None] * (kernels @ kernels.T) + identities.off_centre_inner_product(
            k1, k2, x, stacks=True
        )

    count = 0
    for n, m in (*vector_sizes(8, 16), *TABLE_SIZES):
        count += agree_on_all_bases(_features, split, 1, (n,), (m,))
    single, other = np.array([[[2]], [[3]]]), np.array([[[5]]])
    one_tap = identities.off_centre_inner_product(single, other, np.ones((7, 1, 4), dtype=int), stacks=True)
    assert one_tap.shape == (7, 2, 1), "an inner product for every input and pair of kernels"
    assert not one_tap.any(), "one tap has no lag but the centre"
    return f"{count + sum(agree_on_all_bases(_features, split, 1, k, i) for k, i in PLANES)} integer equalities"


@evidence(
    Kind.PROPERTY,
    "kernels of integers, Fractions, float32 and float64, with a common factor from 2^-900 to 2^900 in one of them and the inverse "
    "in the others: <K1, K2> and <F1, F2>, of the dtype that is asked for",
)
def similarities_in_every_dtype_and_at_every_scale(examples: int) -> str:
    def check(k1: Array, k2: Array, x: Array, power: int) -> None:
        k1, k2, x = k1[0, 0], k2[0, 0], x[0, 0]
        kernels, maps = int((k1 * k2).sum()), int(identities.feature_inner_product(k1, k2, x))
        for dtype in (np.int64, object, np.float32, np.float64):
            one, other, image = (a.astype(dtype) for a in (k1, k2, x))
            found = (
                convla.kernel_similarity(one, other),
                convla.feature_map_similarity(one, other, image, padding="full"),
            )
            assert dtype is object or [f.dtype for f in found] == [dtype] * 2, (dtype, found)
            wanted = np.array([kernels, maps]).astype(dtype)
            assert np.array_equal(np.array(found, dtype=dtype), wanted), (dtype, k1, k2, x)
        mixed = np.array([Fraction(int(n), 3) for n in k1.ravel()], dtype=object).reshape(k1.shape)
        assert convla.kernel_similarity(mixed, k2) == Fraction(kernels, 3), "exact numbers stay exact"
        assert float(convla.kernel_similarity(k1, k2 / 2)) == kernels / 2
        # Sums that cancel, beyond the range on the way: integers beside floats.
        beyond = np.array([[1 << 40, 1 << 40], [1 << 1000, -(1 << 1000)]], dtype=object)
        assert float(convla.kernel_similarity(beyond[0].astype(np.int64), beyond[1].astype(np.float64))) == 0.0
        # <K1, K2> has degree one in each kernel, <F1, F2> two in X besides.
        large, small = np.ldexp(1.0, power), np.ldexp(1.0, -power)
        assert float(convla.kernel_similarity(large * k1, small * k2)) == kernels, (k1, k2, power)
        root = np.ldexp(1.0, -(power // 2))
        found = convla.feature_map_similarity(root**-2 * k1, 1.0 * k2, root * x, padding="full")
        assert float(found) == maps, (k1, k2, x, power)

    drawn = st.tuples(pairs_and_inputs(integers), st.integers(-900, 900))
    return for_all(examples, drawn.map(lambda pair: (*pair[0], pair[1])), check)


@evidence(Kind.COUNTEREXAMPLE, "N = 2, M = 2")
def orthogonal_kernels_with_similar_feature_maps(_: int) -> str:
    k1, k2, x = [1, 0], [0, 1], [1, 2]
    assert int(convla.kernel_similarity(k1, k2)) == 0
    value = int(identities.feature_inner_product(k1, k2, x))
    assert value == 2 == int(identities.off_centre_inner_product(k1, k2, x)), value
    return f"K1 = {k1}, K2 = {k2}, X = {x}: <K1, K2> = 0, <F1, F2> = {value}"


STATEMENTS = (
    Statement(
        id="CSM-def",
        number="Section 3",
        title="ranges of full, valid and same cross-correlation and convolution",
        claim=r"$(X \circledast K)[i] = \sum_{n=0}^{N-1} K[n]\,X[i+n-N+1]$ and $(X * K)[i] = \sum_{n=0}^{N-1} "
        r"K[n]\,X[i-n]$, for $i \in [0, M+N-2]$ (full), $[N-1, M-1]$ (valid) and, for odd $N$, "
        r"$[\frac{N-1}{2}, M-1+\frac{N-1}{2}]$ (same).",
        verdict=Verdict.CORRECTED,
        correction="The same range is for odd N only. Two misprints change no value: the sums end at N - 1, N is printed, where "
        "K[N] = 0 by the source's own convention; and i is an integer in Eqs. (1) and (2), not a natural number.",
        evidence=(definitions_on_the_bases, printed_upper_limit_adds_nothing, even_kernels_have_no_same_range),
        functions=(
            "convla.cross_correlate",
            "convla.convolve",
        ),
    ),
    Statement(
        id="CSM-13",
        number="Eqs. (2), (3), (13)",
        title="which operand of the kernels' cross-correlation moves",
        claim=r"Under Eq. (13), $(K_1 \circledast K_2)[t] = \sum_n K_1[n]\,K_2[n+t]$, while Eq. (2) defines "
        r"$(X \circledast K)[t] = \sum_n K[n]\,X[n+t]$.",
        verdict=Verdict.CORRECTED,
        correction=r"Under Eq. (13) read $K_2\circledast K_1$ in the sense of Eq. (2), or reverse the lags; squared norms over all "
        r"lags, and so the convolutional similarity, do not notice. Eqs. (3) and (4) write $K\circledast X$ for what Eqs. (2) and (25) "
        r"write $X\circledast K$.",
        evidence=(operands_swap_between_equations, swapping_kernels_reverses_lags),
        functions=("convla.identities.kernel_correlation",),
    ),
    Statement(
        id="CSM-6",
        number="Eqs. (6), (13), (14)",
        title="the inner product of fully padded feature maps is one of correlations",
        claim=r"$\langle F_1, F_2\rangle = \langle K_1 \circledast K_2, (X \circledast X)_{[1-N,\,N-1]}\rangle$ for "
        r"full cross-correlation; with channels, $\sum_{c,d} \langle K_1[c] \circledast K_2[d], X[c] \circledast "
        r"X[d]\rangle$; in any number of dimensions.",
        verdict=Verdict.HOLDS,
        evidence=(full_identity_on_vectors, full_identity_on_planes_and_channels, full_identity_in_floating_point),
        functions=(
            "convla.identities.correlation_inner_product",
            "convla.identities.kernel_correlation",
            "convla.identities.autocorrelation",
            "convla.identities.feature_inner_product",
        ),
        note="The sum over all pairs of channels is why the convolutional similarity of a layer takes all pairs, where "
        "the loss of orthogonal networks takes equal channels only.",
    ),
    Statement(
        id="CSM-4.1",
        number="Lemma 4.1, Eqs. (10) to (12)",
        title="the terms added to make the sums rectangular vanish",
        claim=r"$A = \sum_{n_1=1}^{N-1}\sum_{n_2=N-n_1}^{N-1} K_1[n_1]K_2[n_1+n_2](X \circledast X)[n_2] = 0$ and "
        r"$B = \sum_{n_1=0}^{N-2}\sum_{n_2=1-N}^{-n_1-1} K_1[n_1]K_2[n_1+n_2](X \circledast X)[n_2] = 0$.",
        verdict=Verdict.HOLDS,
        correction='In the proof, "for all i in [0, N-1], K2[i] = 0" must read "for all i not in [0, N-1]".',
        evidence=(out_of_range_terms_are_empty,),
        functions=("convla.identities.kernel_correlation",),
    ),
    Statement(
        id="CSM-4.2",
        number="Lemma 4.2, Eq. (18)",
        title="convolutional similarity is symmetric",
        claim=r"$\sum_t (K_1 \circledast K_2)^2[t] = \sum_t (K_2 \circledast K_1)^2[t]$; stronger, "
        r"$(K_1 \circledast K_2)[t] = (K_2 \circledast K_1)[-t]$.",
        verdict=Verdict.HOLDS,
        evidence=(swapping_kernels_reverses_lags, similarity_is_symmetric),
        functions=("convla.identities.kernel_correlation",),
        correction=r"In the proof the bounds of $n_1+n_2$ in the sum added last are N and $N+n_2-1$; $N+n-1$ is printed.",
        note=r"The second line of the proof puts $-n_2$ for $n_2$ without saying so.",
    ),
    Statement(
        id="CSM-4.3",
        number="Lemma 4.3, Eqs. (21), (22)",
        title="full convolution and full cross-correlation give the same inner product",
        claim=r"$\langle X \circledast K_1, X \circledast K_2\rangle = \langle X * K_1, X * K_2\rangle$, full padding.",
        verdict=Verdict.HOLDS,
        evidence=(convolution_gives_the_same_inner_product,),
        functions=(
            "convla.identities.feature_inner_product",
            "convla.convolve",
        ),
        correction=r"In the proof the upper limit $N_1$ of a sum over $n_2$ must read N - 1, and the lower limit $i=-n_2$ of the last "
        "sums i = 0, as in Eq. (10).",
        note="For one input channel only; see CSM-4.3C.",
    ),
    Statement(
        id="CSM-4.3C",
        number="ours",
        title="Lemma 4.3 for several input channels",
        claim=r"With $F_j = \sum_c X[c] \circledast K_j[c]$, full convolution and full cross-correlation give the same "
        r"$\langle F_1, F_2\rangle$ for any number of channels.",
        verdict=Verdict.REFUTED,
        counterexample="C = 2, N = 2: two unit kernels in different channels and an input with two entries 1; "
        "convolution pairs $(K_1[c] \\circledast K_2[d])$ with $X[d] \\circledast X[c]$ instead of "
        "$X[c] \\circledast X[d]$, which are mirror images of each other, equal only for c = d.",
        evidence=(convolution_differs_with_two_channels, convolution_transposes_the_channel_pairs),
        functions=(
            "convla.identities.feature_inner_product",
            "convla.identities.autocorrelation",
        ),
        note="A vanishing convolutional similarity still makes both inner products vanish.",
    ),
    Statement(
        id="CSM-23",
        number="Section 4.2.1, Eq. (23)",
        title="what is left of the inner product when the kernels are orthogonal",
        claim=r"$\langle F_1, F_2\rangle = \|X\|^2 \langle K_1, K_2\rangle + \sum_{n \ne 0} (X \circledast X)[n]\,"
        r"(K_1 \circledast K_2)[n]$; so $\langle K_1, K_2\rangle = 0$ does not imply $\langle F_1, F_2\rangle = 0$.",
        verdict=Verdict.HOLDS,
        correction=r"The sums above Eq. (23) run over n but leave out $n_2=0$: n is meant.",
        evidence=(
            centre_lag_is_the_kernel_similarity,
            orthogonal_kernels_with_similar_feature_maps,
            similarities_in_every_dtype_and_at_every_scale,
        ),
        functions=(
            "convla.identities.off_centre_inner_product",
            "convla.kernel_similarity",
        ),
    ),
)
