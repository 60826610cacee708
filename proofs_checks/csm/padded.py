"""CSM Section 5: the inner product under padding P < N - 1, its error terms, and how large they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

import convla
from convla import identities
from convla.testing import gamma
from convla.typing import AnyArray
from convla.typing import NumPyArray as Array
from proofs_checks.bases import agree_on_all_bases, quadratic_basis, unit_kernels, vector_sizes
from proofs_checks.csm.full import PLANES, TABLE_SIZES, inner_product_bound, printed_sum
from proofs_checks.csm.mean_square import (
    energy_falls_with_padding,
    mean_square_is_the_energy,
    ratios_approach_their_limits,
    sizes_in_mean_square,
)
from proofs_checks.draws import floats, for_all, pairs_and_inputs
from proofs_checks.statement import Kind, Statement, UnavailableError, Verdict, evidence

__all__ = ["STATEMENTS"]


def _both_sides(padding: object) -> tuple[Callable[..., Array], Callable[..., Array]]:
    def features(k1: Array, k2: Array, x: Array) -> AnyArray:
        return identities.feature_inner_product(k1, k2, x, padding=padding, stacks=True)  # type: ignore[arg-type]

    def corrected(k1: Array, k2: Array, x: Array) -> AnyArray:
        a, b = identities.padding_error_terms(k1, k2, x, padding, stacks=True)  # type: ignore[arg-type]
        return identities.correlation_inner_product(k1, k2, x, stacks=True) - a - b

    return features, corrected


@evidence(
    Kind.PROOF, "all unit K and X, every N <= 6, M <= 10, every P with an output: Eq. (25) over the printed range"
)
def padded_definition_on_the_bases(_: int) -> str:
    count = 0
    for n, m in vector_sizes(6, 10):
        kernels, inputs = unit_kernels(1, (n,)), unit_kernels(1, (m,))
        for p in range(max(0, (n - m + 1) // 2), n):
            features = convla.cross_correlate(inputs, kernels, padding=p)
            for (a, k), (b, x) in itertools.product(enumerate(kernels[:, 0]), enumerate(inputs[:, 0])):
                wanted = [printed_sum(k, x, i - n + 1, +1) for i in range(n - 1 - p, m + p)]
                assert features[b, a].tolist() == wanted, (n, m, p, k, x)
                count += 1
    return f"{count} feature maps equal"


@evidence(
    Kind.PROOF,
    "all basis inputs, every P with an output, N <= 8, M <= 16; (N, M) = (3, 64), (9, 64), (16, 64), P = 0, half, N - 2",
)
def padded_identity_on_vectors(_: int) -> str:
    count = 0
    for n, m in (*vector_sizes(8, 16), *TABLE_SIZES):
        every = range(max(0, (n - m + 1) // 2), n)
        for p in every if m < 64 else sorted({0, (n - 1) // 2, n - 2}):
            count += agree_on_all_bases(*_both_sides(p), 1, (n,), (m,), f", P = {p}")
    return f"{count} integer equalities"


@evidence(
    Kind.PROOF, "all basis inputs, unequal padding on every side: 2-D up to 3x3 on 4x4, 3-D 2x2x2; C = 2 channels"
)
def padded_identity_on_planes_and_channels(_: int) -> str:
    count = 0
    for kernel, image in PLANES:
        sides = [list(itertools.product(range(n), repeat=2)) for n in kernel]
        chosen = list(itertools.product(*sides))
        for padding in chosen[:: max(1, len(chosen) // 9)]:
            count += agree_on_all_bases(*_both_sides(list(padding)), 1, kernel, image, f", padding {padding}")
    for n, p in ((2, 0), (3, 0), (3, 1)):
        count += agree_on_all_bases(*_both_sides(p), 2, (n,), (4,), f", P = {p}")
    return f"{count} integer equalities"


@evidence(Kind.PROPERTY, "float64 within rounding, 1 to 3 axes, several channels, padding same and valid")
def padded_identity_in_floating_point(examples: int) -> str:
    def check(k1: Array, k2: Array, x: Array) -> None:
        for padding in ("same", "valid"):
            left, right = _both_sides(padding)
            error = np.abs(left(k1, k2, x) - right(k1, k2, x))
            # A and B are parts of the same form in the moduli, and two subtractions add 2 operations.
            bound = 3 * inner_product_bound(k1, k2, x) * (1 + gamma(2, np.float64))
            assert (error <= bound).all(), f"{padding}: off by {error.max()} beyond {bound.min()}: {k1}, {k2}, {x}"

    return for_all(examples, pairs_and_inputs(floats), check)


def _printed_sums(n: int, m: int, p: int, x: Array, *, misprint: bool) -> tuple[Array, Array]:
    """Return the matrices of Eqs. (31) and (32), summed term by term; X[i + n2 - n2] where `misprint`."""

    def entry(i: int) -> int:
        return int(x[i]) if 0 <= i < m else 0

    a, b = np.zeros((n, n), np.int64), np.zeros((n, n), np.int64)
    for n1, n2 in itertools.product(range(n), repeat=2):
        shift = 0 if misprint else n2 - n1
        a[n1, n2] = sum(entry(i + shift) * entry(i) for i in range(n1 + 1 - n, n1 - p))
        b[n1, n2] = sum(entry(i + shift) * entry(i) for i in range(m - n + p + n1 + 1, m + n1))
    return a, b


@evidence(Kind.PROOF, "all basis inputs, every N <= 4, M <= 5, every P: the sums of Eqs. (31), (32) term by term")
def error_terms_are_the_printed_sums(_: int) -> str:
    count = 0
    for n, m in vector_sizes(4, 5):
        kernels = unit_kernels(1, (n,))
        for p, x in itertools.product(range(max(0, (n - m + 1) // 2), n), next(quadratic_basis(1, (m,), 1 << 20))):
            shipped = identities.padding_error_terms(kernels, kernels, x, p, stacks=True)
            for name, one, other in zip("AB", shipped, _printed_sums(n, m, p, x[0], misprint=False), strict=True):
                assert np.array_equal(one, other), f"{name}, N = {n}, M = {m}, P = {p}, X = {x[0]}"
                count += one.size
    return f"{count} integer equalities"


@evidence(
    Kind.PROOF,
    "all basis inputs and unit kernels, 2x2 on 2x2 and 2x3 on 3x3, 2x2x1 on 2x2x2, unequal padding: A and B output by output, "
    "along the first axis on which it lies outside",
)
def error_terms_split_along_the_first_axis(_: int) -> str:
    count = 0
    for size, image in (((2, 2), (2, 2)), ((2, 3), (3, 3)), ((2, 2, 1), (2, 2, 2))):
        kernels = unit_kernels(1, size)
        outputs = [range(n + m - 1) for n, m in zip(size, image, strict=True)]
        for sides in list(itertools.product(*(itertools.product(range(n), repeat=2) for n in size)))[::3]:
            for x in next(quadratic_basis(1, image, 1 << 12))[::5]:
                wanted = np.zeros((2, len(kernels), len(kernels)), np.int64)
                for place in itertools.product(*outputs):
                    # Each unit kernel reads one entry of the window at this output.
                    window = np.array(
                        [
                            _entry(
                                x[0],
                                [i - n + 1 + int(t) for i, n, t in zip(place, size, np.argwhere(k[0])[0], strict=True)],
                            )
                            for k in kernels
                        ]
                    )
                    for i, n, m, (low, high) in zip(place, size, image, sides, strict=True):
                        if not n - 1 - low <= i < m + high:
                            wanted[int(i >= m + high)] += np.outer(window, window)
                            break
                shipped = identities.padding_error_terms(
                    kernels, kernels, x, [(low, high) for low, high in sides], stacks=True
                )
                for name, one, other in zip("AB", shipped, wanted, strict=True):
                    assert np.array_equal(one, other), (
                        f"{name}: {size} on {image}, padding {sides}, X = {x[0].tolist()}"
                    )
                    count += one.size
    return f"{count} integer equalities"


def _entry(x: Array, place: list[int]) -> int:
    return int(x[tuple(place)]) if all(0 <= i < m for i, m in zip(place, x.shape, strict=True)) else 0


@evidence(
    Kind.PROOF, "all unit K, every N <= 8, M <= 12: A = B = 0 at P = N - 1; outputs left out: N - P - 1 each side"
)
def number_of_terms(_: int) -> str:
    for n, m in vector_sizes(8, 12):
        kernels, ones = unit_kernels(1, (n,)), np.ones((1, m), np.int64)
        a, b = identities.padding_error_terms(kernels, kernels, ones, n - 1, stacks=True)
        assert not a.any(), f"A at P = N - 1 = {n - 1}"
        assert not b.any(), f"B at P = N - 1 = {n - 1}"
        for p in range(max(0, (n - m + 1) // 2), n):
            terms = (
                [range(n1 + 1 - n, n1 - p) for n1 in range(n)],
                [range(m - n + p + n1 + 1, m + n1) for n1 in range(n)],
            )
            assert sum(map(len, terms[0])) * n == sum(map(len, terms[1])) * n == n * n * (n - p - 1)
            lengths = {len(range(1 - n + n1, m + n1)) for n1 in range(n)}
            assert lengths == {m + n - 1}, "the full sum has N N (M + N - 1) terms"
            # X = 1 shows which of them are not zero: those whose two entries of X both lie inside.
            a, b = identities.padding_error_terms(kernels, kernels, ones, p, stacks=True)
            for got, sums in zip((a, b), _printed_sums(n, m, p, ones[0], misprint=False), strict=True):
                assert np.array_equal(got, sums), (n, m, p)
    return "counts N N (N - P - 1) and N N (M + N - 1)"


@evidence(Kind.COUNTEREXAMPLE, "exhaustive over unit kernels and 0/1 inputs, N, M <= 3, every P, in order of size")
def misprinted_error_terms_fail(_: int) -> str:
    for n, m in vector_sizes(3, 3):
        for p in range(max(0, (n - m + 1) // 2), n):
            for x in itertools.product((0, 1), repeat=m):
                a, b = _printed_sums(n, m, p, np.array(x), misprint=True)
                kernels = unit_kernels(1, (n,))
                inputs = np.array([x])
                full = identities.correlation_inner_product(kernels, kernels, inputs, stacks=True)
                kept = identities.feature_inner_product(kernels, kernels, inputs, padding=p, stacks=True)
                true_a, true_b = identities.padding_error_terms(kernels, kernels, inputs, p, stacks=True)
                assert np.array_equal(full - true_a - true_b, kept), "the corrected terms"
                if not np.array_equal(full - a - b, kept):
                    i, j = np.argwhere(full - a - b != kept)[0]
                    return (
                        f"N = {n}, M = {m}, P = {p}, X = {x}, K1 = e_{i}, K2 = e_{j}: {(full - a - b)[i, j]} "
                        f"is not {kept[i, j]}"
                    )
    raise AssertionError("Eqs. (31), (32) as printed give the right value for every small input")


SHARES = (0.1, 1.0)
"""What counts as "not much smaller": |A + B| above these multiples of the fully padded inner product."""


def _photograph_rows(rng: np.random.Generator, count: int, length: int) -> Array:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise UnavailableError("rows of photographs need scikit-learn: pip install scikit-learn Pillow") from None
    try:
        images = [image.mean(axis=2) / 255.0 for image in load_sample_images().images]
    except ImportError:
        raise UnavailableError("scikit-learn reads its photographs with Pillow: pip install Pillow") from None
    rows = np.concatenate([image[:, start : start + length] for image in images for start in range(0, 500, length)])
    return np.asarray(rows[rng.integers(0, len(rows), count)])


INPUTS: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "uniform": lambda rng, count, length: rng.uniform(0, 1, (count, length)),
    "zero-mean noise": lambda rng, count, length: rng.standard_normal((count, length)),
    "photograph rows": _photograph_rows,
}


def error_ratios(kind: str, n: int, m: int, p: int, draws: int, seed: int = 0) -> Array:
    """Draw |A + B| / |<K1 (x) K2, X (x) X>| for kernels uniform on (-1, 1) and inputs of a kind."""
    rng = np.random.default_rng(seed)
    inputs = INPUTS[kind](rng, draws, m)[:, None, :]
    k1, k2 = rng.uniform(-1, 1, (draws, 2, 1, n)).swapaxes(0, 1)
    ratios = np.empty(draws)
    for part in (slice(start, start + 25) for start in range(0, draws, 25)):
        a, b = identities.padding_error_terms(k1[part], k2[part], inputs[part], p, stacks=True)
        whole = identities.correlation_inner_product(k1[part], k2[part], inputs[part], stacks=True)
        own = np.arange(len(a))  # each input with its own two kernels
        ratios[part] = np.abs(a + b)[own, own, own] / np.abs(whole)[own, own, own]
    return ratios


def _measured(kind: str, examples: int) -> str:
    found = []
    for n, m in (*TABLE_SIZES, (9, 16)):
        draws = max(100, 4 * examples)
        for p in sorted({0, (n - 1) // 2}):
            ratios = error_ratios(kind, n, m, p, draws)
            shares = [float((ratios > share).mean()) for share in SHARES]
            found.append(
                f"N = {n}, M = {m}, P = {p}: median {np.median(ratios):.3f}, above {SHARES[0]} in {shares[0]:.0%}, "
                f"above {SHARES[1]:.0f} in {shares[1]:.0%}"
            )
        # P = N - 1 leaves nothing out, in every draw.
        assert not error_ratios(kind, n, m, n - 1, 5).any(), "A + B at P = N - 1"
    # The ratio grows as N / M does: at the printed sizes it is largest for N = 16.
    small, large = (np.median(error_ratios(kind, n, 64, 0, max(100, 4 * examples))) for n in (3, 16))
    assert 0 < small < SHARES[0] < large < SHARES[1], f"medians {small:.3f} at N = 3, {large:.3f} at N = 16"
    return "; ".join(found)


@evidence(Kind.MEASUREMENT, "X uniform on (0, 1), the paper's sampling; N = 3, 9, 16, M = 64, and N = 9, M = 16")
def error_terms_for_uniform_inputs(examples: int) -> str:
    return _measured("uniform", examples)


@evidence(Kind.MEASUREMENT, "X standard normal; the same sizes")
def error_terms_for_noise(examples: int) -> str:
    return _measured("zero-mean noise", examples)


@evidence(Kind.MEASUREMENT, "X rows of scikit-learn's two photographs; the same sizes")
def error_terms_for_photographs(examples: int) -> str:
    return _measured("photograph rows", examples)


@evidence(
    Kind.COUNTEREXAMPLE,
    "N = 2, M = 2, P = 0, the least sizes that leave an output out: entries in {-1, 0, 1}, in order of size",
)
def error_terms_larger_than_the_whole(_: int) -> str:
    entries = np.array(list(itertools.product((-1, 0, 1), repeat=2)))
    for k1, k2, x in sorted(itertools.product(entries, repeat=3), key=lambda drawn: np.abs(drawn).sum()):
        a, b = identities.padding_error_terms(k1, k2, x, 0)
        full = identities.correlation_inner_product(k1, k2, x)
        if abs(full) < abs(a + b):
            kept = int(identities.feature_inner_product(k1, k2, x, padding=0))
            assert kept == full - a - b
            return (
                f"K1 = {k1.tolist()}, K2 = {k2.tolist()}, X = {x.tolist()}: A + B = {int(a + b)}, "
                f"full {int(full)}, valid {kept}"
            )
    raise AssertionError("A + B is never larger than the fully padded inner product")


@evidence(Kind.COUNTEREXAMPLE, "exhaustive over entries in {-1, 0, 1}, N <= 3, M <= 3, small ones first")
def error_terms_may_grow_with_padding(_: int) -> str:
    for n, m in vector_sizes(3, 3):
        kernels, inputs = (
            np.array(sorted(itertools.product((-1, 0, 1), repeat=size), key=lambda v: sum(map(abs, v))))[:, None]
            for size in (n, m)
        )
        whole, terms = identities.correlation_inner_product(kernels, kernels, inputs, stacks=True), []
        for p in range(max(0, (n - m + 1) // 2), n):
            terms.append(np.abs(sum(identities.padding_error_terms(kernels, kernels, inputs, p, stacks=True))))
            kept = identities.feature_inner_product(kernels, kernels, inputs, padding=p, stacks=True)
            assert np.array_equal(terms[-1], np.abs(whole - kept)), f"the distance of the two sides: {n}, {m}, {p}"
        for p, (before, after) in enumerate(itertools.pairwise(terms), n - len(terms)):
            if (after > before).any():
                x, a, b = np.argwhere(after > before)[0]
                return (
                    f"K1 = {kernels[a, 0].tolist()}, K2 = {kernels[b, 0].tolist()}, X = {inputs[x, 0].tolist()}: "
                    f"|A + B| is {before[x, a, b]} at P = {p}, {after[x, a, b]} at P = {p + 1}"
                )
    raise AssertionError("|A + B| never grows with P")


@evidence(Kind.MEASUREMENT, "N = 9, M = 64, kernels uniform on (-1, 1), each kind of input: |A + B| at every P")
def error_terms_fall_on_average(examples: int) -> str:
    found, draws = [], max(100, 4 * examples)
    for kind in INPUTS:
        rng = np.random.default_rng(0)
        inputs = INPUTS[kind](rng, draws, 64)[:, None]
        k1, k2 = rng.uniform(-1, 1, (2, draws, 1, 9))
        terms = np.empty((9, draws))
        for p, i in itertools.product(range(9), range(0, draws, 25)):
            part = slice(i, i + 25)
            a, b = identities.padding_error_terms(k1[part], k2[part], inputs[part], p, stacks=True)
            own = np.arange(len(a))
            terms[p, part] = np.abs(a + b)[own, own, own]
        medians = np.median(terms, axis=1)
        assert medians[0] > medians[4] > medians[7] > medians[8] == 0, f"{kind}: medians {medians}"
        grew = float((np.diff(terms, axis=0) > 0).mean())
        assert 0 < grew < 0.5, f"{kind}: it grows in {grew:.0%} of steps"
        found.append(
            f"{kind}: median {medians[0]:.2f}, {medians[4]:.2f}, {medians[7]:.3f} at P = 0, 4, 7, a step up in {grew:.0%} of steps"
        )
    return "; ".join(found)


STATEMENTS = (
    Statement(
        id="CSM-25",
        number="Eqs. (25) to (28)",
        title="cross-correlation with padding P",
        claim=r"For $P \in [0, N-1]$ and $i \in [N-1-P, M-1+P]$, $F_j[i] = \sum_n K_j[n]\,X[i+n-N+1]$; $P = 0$ is "
        r"valid, $P = N-1$ full, $P = \frac{N-1}{2}$ same.",
        verdict=Verdict.CORRECTED,
        correction=r"Eq. (26) prints $X[n_1+1-N+1]$ and Eq. (27) $X[n_2+-N+1]$; both must read $X[n+i-N+1]$. "
        '"Same" exists for odd N only.',
        evidence=(padded_definition_on_the_bases, padded_identity_on_vectors),
        functions=(
            "convla.identities.feature_inner_product",
            "convla.cross_correlate",
        ),
    ),
    Statement(
        id="CSM-33",
        number="Eqs. (29) to (33), (36)",
        title="the inner product under any padding, with its error terms",
        claim=r"$\langle F_1, F_2\rangle_P = \langle K_1 \circledast K_2, (X \circledast X)_{[1-N,\,N-1]}\rangle - A - B$"
        r" with $A = \sum_{n_1, n_2} K_1[n_1]K_2[n_2]\sum_{i=n_1+1-N}^{n_1-P-1} X[i+n_2-n_1]X[i]$ and $B$ likewise over "
        r"$i \in [M-N+P+n_1+1, M-1+n_1]$; $A = B = 0$ at $P = N-1$; $A$ and $B$ have $N^2(N-P-1)$ terms each.",
        verdict=Verdict.CORRECTED,
        correction=r"Eqs. (30) to (32) print $X[i+n_2-n_2]$; it must read $X[i+n_2-n_1]$.",
        evidence=(
            padded_identity_on_vectors,
            padded_identity_on_planes_and_channels,
            error_terms_are_the_printed_sums,
            error_terms_split_along_the_first_axis,
            number_of_terms,
            misprinted_error_terms_fail,
            padded_identity_in_floating_point,
        ),
        functions=(
            "convla.identities.padding_error_terms",
            "convla.identities.correlation_inner_product",
        ),
        note="In n dimensions A and B collect the outputs left out below and above the kept range, along the first axis "
        "on which they lie outside.",
    ),
    Statement(
        id="CSM-34",
        number="Eqs. (34), (35)",
        title="the error terms are small with high probability",
        claim=r"$A + B \ll \langle K_1 \circledast K_2, (X \circledast X)_{[1-N,\,N-1]}\rangle$ with high probability.",
        verdict=Verdict.STATISTICAL,
        evidence=(
            mean_square_is_the_energy,
            ratios_approach_their_limits,
            sizes_in_mean_square,
            error_terms_for_uniform_inputs,
            error_terms_for_noise,
            error_terms_for_photographs,
            error_terms_larger_than_the_whole,
        ),
        functions=(
            "convla.identities.padding_error_energy",
            "convla.identities.padding_error_terms",
        ),
        note=r"The source counts terms, and the count gives the right order: over independent kernels with uncorrelated "
        r"entries of mean 0 the root mean square of $A+B$ is $\|G_P\|_F/\|G\|_F$ of that of the whole, $G$ and $G_P$ the Gram "
        r"matrices of the input's windows at all outputs and at those left out; at the printed sizes about half of what the "
        r"count says. At $P=0$, as $N/M \to c$, it tends to $c\sqrt{1/(2-\frac43c+\frac13c^2)}$ for a constant input and to "
        r"$c\sqrt{5/(3+3c-c^2)}$ for white noise. How probable a large quotient is is another question, for it has a heavy "
        "tail: at N = 16, M = 64, P = 0 it exceeds a tenth in most draws, and now and then 1.",
    ),
    Statement(
        id="CSM-35",
        number="Section 5, after Eq. (35)",
        title="whether padding brings the two sides together",
        claim=r"The closer $P$ is to $N-1$, the closer are $\langle F_1, F_2\rangle_P$ and $\langle K_1 \circledast K_2, "
        r"(X \circledast X)_{[1-N,\,N-1]}\rangle$.",
        verdict=Verdict.CORRECTED,
        correction=r"In mean square, and then for every input: over independent kernels with uncorrelated entries of mean 0 and "
        r"variance $s^2$, $E(A+B)^2 = s^4\|G_P\|_F^2$ with $G_P \succeq G_{P+1} \succeq 0$ the Gram matrices of the windows "
        r"left out, which falls with every step of P to 0 at $P=N-1$; in any number of dimensions and channels. For single "
        "kernels it may rise: what the outputs left out contribute can cancel at P = 0 and not at P = 1.",
        evidence=(
            mean_square_is_the_energy,
            energy_falls_with_padding,
            sizes_in_mean_square,
            error_terms_may_grow_with_padding,
            error_terms_fall_on_average,
        ),
        functions=(
            "convla.identities.padding_error_energy",
            "convla.identities.padding_error_terms",
        ),
    ),
)
