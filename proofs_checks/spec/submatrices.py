"""Zero-padded convolutions as submatrices, products and transposes of each other and of periodic ones."""

from __future__ import annotations

import itertools
import math

import numpy as np

import convla
from convla import identities
from convla.testing import gamma
from convla.typing import AnyArray
from convla.typing import NumPyArray as Array
from proofs_checks.bases import quadratic_basis, unit_kernels
from proofs_checks.draws import for_all, integers, layers
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]

SIZES = (
    ((1,), (1,)),
    ((2,), (4,)),
    ((3,), (5,)),
    ((4,), (6,)),
    ((2, 2), (3, 3)),
    ((3, 2), (3, 4)),
    ((2, 2, 2), (2, 3, 2)),
)
"""Sizes of kernels and images at which matrices are compared entry by entry."""


def _matrix(kernel: Array, image: tuple[int, ...], padding: object = "same", boundary: str = "zero") -> AnyArray:
    operator = convla.ConvOperator(kernel, image, padding=padding, boundary=boundary)  # type: ignore[arg-type]
    return operator.to_dense()


def _positions(shape: tuple[int, ...], starts: tuple[int, ...], lengths: tuple[int, ...]) -> Array:
    """Return the flat indices of a box of positions in an array of positions."""
    grids = np.ix_(*(np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)))
    return np.ravel_multi_index(grids, shape).ravel()


@evidence(
    Kind.PROOF,
    "all unit kernels, seven sizes with 1 to 3 axes, 2 to 1 channels: rows of valid in same in full; image grown by 1",
)
def chain_of_submatrices(_: int) -> str:
    count = 0
    for size, image in SIZES:
        for kernel in unit_kernels(2, size):
            full, same, valid = (_matrix(kernel[None], image, padding) for padding in ("full", "same", "valid"))
            outputs = tuple(n + m - 1 for n, m in zip(size, image, strict=True))
            kept = _positions(outputs, tuple(n - 1 - (n - 1) // 2 for n in size), image)
            assert np.array_equal(same, full[kept]), f"same in full: N = {size}, M = {image}"
            inner = tuple(m - n + 1 for n, m in zip(size, image, strict=True))
            kept = _positions(image, tuple((n - 1) // 2 for n in size), inner)
            assert np.array_equal(valid, same[kept]), f"valid in same: N = {size}, M = {image}"
            grown = tuple(m + 1 for m in image)
            rows = _positions(grown, (0,) * len(size), image)
            columns = np.concatenate([rows, rows + math.prod(grown)])
            assert np.array_equal(same, _matrix(kernel[None], grown)[np.ix_(rows, columns)]), f"growth: N = {size}"
            count += 3
    return f"{count} submatrices"


@evidence(Kind.PROPERTY, "integer layers, 1 and 2 axes: largest singular values along the chain and as the image grows")
def chain_of_norms(examples: int) -> str:
    def check(kernel: Array) -> None:
        kernel = kernel.astype(np.float64)
        size = kernel.shape[2:]
        images = [tuple(n + grow for n in size) for grow in (0, 1)]
        norms = {
            (padding, grow): float(
                convla.largest_singular_value(convla.ConvOperator(kernel, image, padding=padding)).value
            )
            for grow, image in enumerate(images)
            for padding in ("valid", "same", "full")
        }
        bounds = convla.singular_value_bounds(convla.ConvOperator(kernel, images[0], padding="full"))
        slack = 1 + 1e-9  # the default accuracy of largest_singular_value
        for padding, wider in (("valid", "same"), ("same", "full")):
            assert norms[padding, 0] <= norms[wider, 0] * slack, (kernel, padding)
        for padding in ("valid", "same", "full"):
            assert norms[padding, 0] <= norms[padding, 1] * slack, (kernel, padding)
        assert bounds.lower <= norms["full", 0] * slack, (kernel, bounds)
        assert norms["full", 0] <= bounds.upper * slack, (kernel, bounds)

    return for_all(examples, layers(integers, axes=2), check)


@evidence(
    Kind.PROOF,
    "all unit kernels, seven sizes with 1 to 3 axes, circulants of size n + p to n + p + 2 (same), n + N - 1 (full)",
)
def zero_padded_in_circulant(_: int) -> str:
    count = 0
    for size, image in SIZES:
        for kernel, extra in itertools.product(unit_kernels(1, size), (0, 1, 2)):
            periods = tuple(m + n // 2 + extra for n, m in zip(size, image, strict=True))
            circulant = _matrix(kernel[None], periods, boundary="circular")
            kept = _positions(periods, (0,) * len(size), image)
            assert np.array_equal(_matrix(kernel[None], image), circulant[np.ix_(kept, kept)]), (
                f"N = {size}, M = {image}"
            )
            periods = tuple(m + n - 1 + extra for n, m in zip(size, image, strict=True))
            circulant = _matrix(kernel[None], periods, boundary="circular")
            outputs = tuple(n + m - 1 for n, m in zip(size, image, strict=True))
            # The output at full position i sits at i - (N - 1 - low) of the periodic image.
            rows = [
                np.arange(-(n - 1 - (n - 1) // 2), o - (n - 1 - (n - 1) // 2)) % p
                for n, o, p in zip(size, outputs, periods, strict=True)
            ]
            rows_flat = np.ravel_multi_index(np.ix_(*rows), periods).ravel()
            kept = _positions(periods, (0,) * len(size), image)
            assert np.array_equal(_matrix(kernel[None], image, "full"), circulant[np.ix_(rows_flat, kept)]), (
                f"full: N = {size}"
            )
            count += 2
    return f"{count} submatrices"


@evidence(Kind.PROPERTY, "integer layers, 1 and 2 axes: the certified upper bound against the exact norm")
def circulant_bound_is_an_upper_bound(examples: int) -> str:
    def check(kernel: Array) -> None:
        kernel = kernel.astype(np.float64)
        image = tuple(n + 1 for n in kernel.shape[2:])
        matrix = _matrix(kernel, image)
        norm = float(np.linalg.norm(matrix, 2))
        bounds = convla.singular_value_bounds(convla.ConvOperator(kernel, image), method="symbol")
        slack = gamma(20 * sum(matrix.shape), np.float64) * norm
        assert norm <= bounds.upper + slack, (kernel, norm, bounds)
        assert bounds.lower <= norm + slack, (kernel, norm, bounds)
        # By any method, and of a product, which is no convolution.
        operator = convla.ConvOperator(kernel, image)
        for operand, wanted in ((operator, norm), (operator.T @ operator, norm**2)):
            lower, upper = convla.singular_value_bounds(operand)[:2]
            margin = gamma(200 * sum(matrix.shape), np.float64) * wanted
            assert (1 - 1e-6) * wanted - margin <= lower <= wanted + margin, (kernel, wanted, lower)
            assert wanted - margin <= upper <= (1 + 1e-6) * wanted + margin, (kernel, wanted, upper)

    return for_all(examples, layers(integers, axes=2), check)


@evidence(
    Kind.PROPERTY,
    "kernels of 3 to 6 taps on 1500 samples: the bound of a long axis against the symbol's norm on a fine grid",
)
def bound_of_a_long_axis(_: int) -> str:
    closest = np.inf
    for seed, taps in itertools.product(range(2), (3, 4, 5, 6)):
        kernel = np.random.default_rng(seed).standard_normal(taps)
        frequencies = np.linspace(0, np.pi, 20001)
        symbol = float(np.abs(np.exp(1j * np.outer(frequencies, np.arange(taps))) @ kernel).max())
        operator = convla.ConvOperator(kernel[None, None], (1500,))
        upper = float(convla.singular_value_bounds(operator, method="symbol", max_matvecs=4).upper)
        assert symbol * (1 - 1e-8) <= upper <= symbol * 1.01, (seed, taps)
        closest = min(closest, upper / symbol - 1)
    return f"8 kernels, at least {closest:.1e} above the symbol's norm"


@evidence(Kind.COUNTEREXAMPLE, "exhaustive over 3-tap kernels with entries -1, 0, 1 and n = 3 .. 8")
def circulant_of_the_same_size_is_too_small(_: int) -> str:
    kernels = sorted(itertools.product((-1, 0, 1), repeat=3), key=lambda k: sum(map(abs, k)))
    for n in range(3, 9):
        for taps in kernels:
            kernel = np.array(taps, dtype=np.float64)
            zero = np.linalg.norm(convla.toeplitz_matrix(kernel, n), 2)
            periodic = np.linalg.norm(convla.circulant_matrix(kernel, n), 2)
            if zero > periodic + 1e-9:
                assert (n, set(taps)) == (3, {-1, 0, 1}), f"a smaller one: {taps} at n = {n}"
                return "; ".join(
                    _exceeds(*case) for case in (((-1, 1, 0), (4, -7, 5)), ((1, 0, -1), (4, 0, -7, 0, 5, 0)))
                )
    raise AssertionError("the circulant of the image's size is always an upper bound up to n = 8")


def _exceeds(taps: tuple[int, ...], vector: tuple[int, ...]) -> str:
    """Check in exact integers that this vector is stretched beyond the norm of the circulant."""
    kernel, v = np.array(taps), np.array(vector)
    toeplitz, circulant = convla.toeplitz_matrix(kernel, v.size), convla.circulant_matrix(kernel, v.size)
    gram = circulant.T @ circulant
    assert np.array_equal(gram @ gram, 3 * gram), "C^T C is 3 times a projection, so that its norm is 3"
    image = toeplitz @ v
    assert image @ image > 3 * (v @ v), (image @ image, v @ v)
    return (
        f"{taps}, n = {v.size}: |T v|^2 = {image @ image} > {3 * (v @ v)} = |C|^2 |v|^2 at v = {vector}, "
        f"{np.linalg.norm(toeplitz, 2):.6f} > {np.linalg.norm(circulant, 2):.6f}"
    )


@evidence(Kind.PROOF, "all basis kernels (quadratic), seven sizes with 1 to 3 axes, two channels")
def full_gram_is_a_toeplitz_operator(_: int) -> str:
    count = 0
    for size, image in SIZES[:6]:
        for block in quadratic_basis(2, size, 1 << 12):
            for kernel in block:
                for layer in (kernel[None], kernel[:, None]):
                    matrix = _matrix(layer, image, "full")
                    lags = identities.gram_kernel(layer)
                    gram = _matrix(lags, image, "same")
                    assert np.array_equal(matrix.T @ matrix, gram), f"N = {size}, M = {image}, K = {layer.tolist()}"
                    count += 1
    return f"{count} matrices"


@evidence(Kind.PROOF, "all unit kernels, seven sizes with 1 to 3 axes, channels 2 to 1")
def valid_is_the_transpose_of_full(_: int) -> str:
    count = 0
    for size, image in SIZES:
        inner = tuple(m - n + 1 for n, m in zip(size, image, strict=True))
        for kernel in unit_kernels(2, size):
            valid = _matrix(kernel[None], image, "valid")
            full = _matrix(identities.adjoint_kernel(kernel[None]), inner, "full")
            assert np.array_equal(valid, full.T), f"N = {size}, M = {image}"
            count += 1
    return f"{count} matrices"


STATEMENTS = (
    Statement(
        id="SPEC-chain",
        number="ours",
        title="norms grow from valid to same to full, and with the image",
        claim=r"$\sigma_{\max}(\text{valid}) \le \sigma_{\max}(\text{same}) \le \sigma_{\max}(\text{full}) \le "
        r"\sup_\theta \|f(\theta)\|_2$, each non-decreasing in the size of the image.",
        verdict=Verdict.HOLDS,
        evidence=(chain_of_submatrices, chain_of_norms),
        functions=("convla.convolution_matrix",),
        note="Each matrix is a submatrix of the next; the last step is SPEC-embed, the norms of circulants being values of "
        "the symbol's norm.",
    ),
    Statement(
        id="SPEC-embed",
        number="ours",
        title="an upper bound from a larger circulant",
        claim=r"The zero-padded matrix on $n$ samples is a submatrix of the circulant of every size $M \ge n + p$, $p$ the "
        r"largest one-sided tap offset (same), or $M \ge n + N - 1$ (full); so its norm is at most the circulant's.",
        verdict=Verdict.HOLDS,
        evidence=(zero_padded_in_circulant, circulant_bound_is_an_upper_bound, bound_of_a_long_axis),
        functions=("convla.singular_value_bounds",),
        note="`singular_value_bounds` certifies its upper bound by it.",
    ),
    Statement(
        id="SPEC-circ-n",
        number="ours",
        title="the circulant of the image's own size as a bound",
        claim=r"The periodic convolution's norm at the image's size bounds the zero-padded one's, as several published tools "
        r"assume.",
        verdict=Verdict.REFUTED,
        counterexample="Kernel (-1, 1, 0), n = 3, and its interleaved form (1, 0, -1), n = 6: 1.801938 against 1.732051, "
        "because the frequency of the symbol's maximum is not on the grid.",
        evidence=(circulant_of_the_same_size_is_too_small,),
        functions=(
            "convla.circulant_matrix",
            "convla.toeplitz_matrix",
        ),
    ),
    Statement(
        id="SPEC-full-gram",
        number="ours",
        title="full padding has a Toeplitz Gram matrix",
        claim=r"For full padding $M^TM = T_n(f^*f)$, the same-padded operator of the kernel's autocorrelation, exactly.",
        verdict=Verdict.HOLDS,
        evidence=(full_gram_is_a_toeplitz_operator,),
        functions=("convla.identities.gram_kernel",),
    ),
    Statement(
        id="SPEC-valid-full",
        number="ours",
        title="valid is the transpose of full",
        claim=r"$\text{valid}(n, K) = \text{full}(n-N+1, \tilde K)^T$, $\tilde K$ with channels swapped and taps flipped: the "
        r"same singular values.",
        verdict=Verdict.HOLDS,
        evidence=(valid_is_the_transpose_of_full,),
        functions=("convla.identities.adjoint_kernel",),
    ),
)
