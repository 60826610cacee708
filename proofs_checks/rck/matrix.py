"""RCK Sections 1 and 2: the convolution, its matrix, and counting equations."""

from __future__ import annotations

import functools
import itertools

import numpy as np
from hypothesis import strategies as st

import convla
from convla import identities
from convla.testing import gamma
from convla.typing import NumPyArray as Array
from proofs_checks.bases import unit_kernels
from proofs_checks.draws import for_all, moderate_floats
from proofs_checks.oic import bound_is_sharp, norm_is_at_most_the_root_of_the_taps
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]


@evidence(Kind.PROOF, "all unit K and X: k <= 5, even k included, N <= 4; channels g, h <= 2 for k <= 3, N <= 3")
def printed_convolution_on_the_bases(_: int) -> str:
    sizes = [(k, n, 1, 1) for k in range(1, 6) for n in range(1, 5)]
    sizes += [(k, n, g, h) for k in (1, 2, 3) for n in (2, 3) for g, h in ((2, 1), (1, 2), (2, 2))]
    for k, n, g, h in sizes:
        m = -(-k // 2)
        inputs = unit_kernels(g, (n, n))
        for p, q, d, c in itertools.product(range(1, k + 1), range(1, k + 1), range(g), range(h)):
            printed = np.zeros((k, k, g, h), np.int64)
            printed[p - 1, q - 1, d, c] = 1
            features = convla.cross_correlate(inputs, convla.kernel_from_hwio(printed), padding="same")
            # y[r, s, c] = x[r - m + p, s - m + q, d]: the image shifted, zeros moving in.
            wanted = np.zeros((len(inputs), h, n, n), np.int64)
            for r, s in itertools.product(range(n), range(n)):
                i, j = r - m + p, s - m + q
                if 0 <= i < n and 0 <= j < n:
                    wanted[:, c, r, s] = inputs[:, d, i, j]
            assert np.array_equal(features, wanted), f"k = {k}, N = {n}, g = {g}, h = {h}, entry {(p, q, d, c)}"
    return f"{len(sizes)} sizes"


def _printed_matrix(kernel: Array, n: int) -> Array:
    """Lay out Eq. (2.1) and its blocks as printed: block A_{-1} right of the diagonal holds the kernel's third row."""
    blocks = {}
    for offset, row in ((1, 0), (0, 1), (-1, 2)):
        blocks[offset] = sum(np.eye(n, k=q - 1, dtype=kernel.dtype) * kernel[row, q] for q in range(3))
    zero = np.zeros((n, n), kernel.dtype)
    return np.block([[blocks.get(i - j, zero) for j in range(n)] for i in range(n)])


@evidence(Kind.PROOF, "all unit 3x3 kernels, every N <= 6: rows stacked")
def printed_blocks_stack_rows(_: int) -> str:
    for n in range(1, 7):
        for kernel in unit_kernels(1, (3, 3))[:, 0]:
            shipped = convla.doubly_block_toeplitz(kernel, (n, n), "same", order="C")
            assert np.array_equal(shipped, _printed_matrix(kernel, n)), f"N = {n}, K = {kernel.tolist()}"
    return "6 sizes, 9 unit kernels each"


@evidence(
    Kind.PROOF, "all unit 3x3 kernels, every N <= 6: columns stacked needs K transposed; the two are permutations"
)
def stacking_columns_transposes_the_kernel(_: int) -> str:
    for n in range(1, 7):
        swap = np.arange(n * n).reshape(n, n).T.ravel()
        for kernel in unit_kernels(1, (3, 3))[:, 0]:
            columns = convla.doubly_block_toeplitz(kernel, (n, n), "same", order="F")
            assert np.array_equal(columns, _printed_matrix(kernel.T, n)), f"N = {n}, K = {kernel.tolist()}"
            rows = convla.doubly_block_toeplitz(kernel, (n, n), "same", order="C")
            assert np.array_equal(columns, rows[np.ix_(swap, swap)]), "a symmetric permutation: same singular values"
    return "6 sizes, 9 unit kernels each"


@evidence(Kind.COUNTEREXAMPLE, "N = 2: the unit kernel with k_12 = 1")
def printed_blocks_do_not_stack_columns(_: int) -> str:
    kernel = np.zeros((3, 3), np.int64)
    kernel[0, 1] = 1
    x = np.array([[1, 2], [3, 4]])
    y = convla.cross_correlate(x[None], kernel[None, None], padding="same")[0]
    product = _printed_matrix(kernel, 2) @ x.ravel(order="F")
    assert y.ravel(order="F").tolist() == [0, 1, 0, 2]
    assert product.tolist() == [0, 0, 1, 3]
    return "M vec(X) = (0, 0, 1, 3) where vec(Y) = (0, 1, 0, 2)"


@evidence(Kind.PROOF, "all unit kernels and inputs, g, h <= 3, k <= 3, N <= 3, with vec() as printed")
def block_matrix_on_the_bases(_: int) -> str:
    # Every plane of a unit kernel is a unit plane or zero: its matrix is made once for each size.
    plane_matrix = functools.cache(
        lambda plane, k, n: convla.doubly_block_toeplitz(
            np.frombuffer(plane, np.int64).reshape(k, k), (n, n), "same", order="F"
        )
    )
    for g, h, k, n in itertools.product((1, 2, 3), (1, 2, 3), (1, 2, 3), (1, 3)):
        for kernel in unit_kernels(g * h, (k, k)).astype(np.int64).reshape(-1, h, g, k, k):
            operator = convla.ConvOperator(kernel, (n, n), padding="same", order="F")
            blocks = [[plane_matrix(kernel[c, d].tobytes(), k, n) for d in range(g)] for c in range(h)]
            assert np.array_equal(operator.to_dense(), np.block(blocks)), f"g = {g}, h = {h}, k = {k}, N = {n}"
        inputs = unit_kernels(g, (n, n))
        printed = np.stack([np.concatenate([plane.T.ravel() for plane in x]) for x in inputs], axis=1)
        features = operator.apply(inputs)
        stacked = np.stack([np.concatenate([plane.T.ravel() for plane in y]) for y in features], axis=1)
        assert np.array_equal(operator.to_dense() @ printed, stacked), f"vec: g = {g}, h = {h}, k = {k}, N = {n}"
    return "54 sizes"


@evidence(
    Kind.PROOF,
    "all unit kernels, g, h <= 2, k <= 3, N <= 3, rows and columns stacked: the sparse matrix against the dense one, and that "
    "of two groups of such layers against the two on its diagonal",
)
def sparse_matrices_are_the_dense_ones(_: int) -> str:
    count = 0
    for g, h, k, n in itertools.product((1, 2), (1, 2), (1, 2, 3), (1, 3)):
        for kernel in unit_kernels(g * h, (k, k)).reshape(-1, h, g, k, k):
            geometry = convla.ConvGeometry(kernel.shape, (n, n), padding="same")
            for order in ("C", "F"):
                dense, sparse = (
                    convla.convolution_matrix(kernel, geometry, order=order, format=form) for form in ("dense", "csr")
                )
                assert np.array_equal(sparse.toarray(), dense), f"g = {g}, h = {h}, k = {k}, N = {n}, order {order}"
                pair = np.concatenate((kernel, 2 * kernel))
                whole = convla.ConvGeometry(pair.shape, (n, n), padding="same", groups=2)
                zero = np.zeros_like(dense)
                for form in ("dense", "csr"):
                    found = convla.convolution_matrix(pair, whole, order=order, format=form)
                    found = found if form == "dense" else found.toarray()
                    assert np.array_equal(found, np.block([[dense, zero], [zero, 2 * dense]])), (
                        g,
                        h,
                        k,
                        n,
                        order,
                        form,
                    )
                count += 3
                # Around and beyond the edge taps of a kernel as long as the image meet in one entry.
                for boundary in ("circular", "replicate") if n <= k else ():
                    around = convla.ConvGeometry(kernel.shape, (n, n), padding="same", boundary=boundary)
                    forms = {
                        form: convla.convolution_matrix(np.cumsum(kernel, axis=-1), around, order=order, format=form)
                        for form in ("dense", "csr", "csc", "coo")
                    }
                    for form in ("csr", "csc", "coo"):
                        assert forms[form].format == form
                        assert np.array_equal(forms[form].toarray(), forms["dense"]), (kernel, n, order, boundary)
                    ones = np.ones(forms["dense"].shape[1], dtype=int)
                    sums = np.repeat(np.cumsum(kernel, axis=-1).sum(axis=(1, 2, 3)), n * n)
                    assert np.array_equal(forms["dense"] @ ones, sums), "each row holds every tap"
                    count += 4
    return f"{count} matrices"


@evidence(Kind.PROOF, "every g, h, k <= 4: entries of the kernel")
def a_filter_has_as_many_weights_as_taps(_: int) -> str:
    for g, h, k in itertools.product(range(1, 5), repeat=3):
        kernel = convla.kernel_from_hwio(np.ones((k, k, g, h), np.int64))
        assert kernel.reshape(h, g * k * k).shape == (h, g * k**2)
        assert (kernel.size == h * g * k) == (k == 1), (g, h, k)
    for ndim in (1, 2, 3):
        printed = np.arange(24 * 2**ndim).reshape((*[2] * ndim, 4, 6))
        kernel = convla.kernel_from_hwio(printed)
        for *tap, d, c in np.ndindex(printed.shape):
            assert kernel[(c, d, *tap)] == printed[(*tap, d, c)], (ndim, tap, d, c)
    return "64 shapes; h (g k) falls short by the factor k"


@evidence(Kind.COUNTEREXAMPLE, "K = (3/4; 1/2), one tap and two input channels, alpha = 1, and its adjoint")
def adjoints_have_other_penalties(_: int) -> str:
    wide = convla.ConvOperator(np.array([[[0.75], [0.5]]]), (2,))
    tall = convla.ConvOperator(identities.adjoint_kernel(wide.kernel), (2,))
    values = [np.linalg.svd(operator.to_dense(), compute_uv=False) for operator in (wide, tall)]
    assert np.allclose(values[0], values[1], rtol=1e-14), "the same singular values"
    penalties = [float(convla.penalty(operator, 1.0)) for operator in (wide, tall)]
    assert penalties[0] == 1.0, penalties
    assert abs(penalties[1] - 3 / 16) < 1e-14, penalties
    return f"sigma^2 = 13/16 twice: the penalty is {penalties[0]:g} for the wide M, {penalties[1]:g} for the tall one"


@evidence(Kind.PROOF, "g <= 4, h <= 4, k <= 3, N <= 4: entries of M^T M on and above its diagonal; entries of K")
def equations_and_unknowns(_: int) -> str:
    for g, h, k, n in itertools.product(range(1, 5), range(1, 5), (1, 2, 3), range(1, 5)):
        operator = convla.ConvOperator(np.ones((h, g, k, k), np.int64), (n, n))
        columns = operator.shape[1]
        assert np.triu_indices(columns)[0].size == g * n**2 * (g * n**2 + 1) // 2
        assert np.asarray(operator.kernel).size == k**2 * g * h
    return "192 sizes"


@evidence(
    Kind.PROPERTY, "one channel, periodic, k = N <= 6, ill-scaled too; and the same with moduli 1 of the transform"
)
def periodic_full_size_kernels(examples: int) -> str:
    orthogonal = 0

    def check(kernel: Array) -> None:
        nonlocal orthogonal
        n = kernel.shape[0]
        spectrum = np.fft.fft2(kernel)
        moduli = np.sort(np.abs(spectrum).ravel())[::-1]
        values = np.linalg.svd(convla.doubly_block_circulant(kernel, (n, n)), compute_uv=False)
        assert np.abs(values - moduli).max() <= gamma(100 * n * n + 200, np.float64) * n * moduli[0], kernel
        if moduli[-1] > 1e-3 * moduli[0]:  # else the phases drown in rounding errors
            unit = np.real(np.fft.ifft2(spectrum / np.abs(spectrum)))
            matrix = convla.doubly_block_circulant(unit, (n, n))
            error = np.abs(matrix.T @ matrix - np.eye(n * n)).max()
            assert error <= gamma(1000 * (100 * n * n + 200), np.float64), f"{kernel}: off by {error}"
            orthogonal += 1

    for_all(examples, st.tuples(st.integers(1, 6).flatmap(lambda n: moderate_floats((n, n)))), check)
    assert orthogonal or examples < 20, "every transform had a value near 0"
    return f"singular values are the moduli of the kernel's DFT; {orthogonal} orthogonal matrices"


@evidence(
    Kind.PROOF, "all unit kernels, odd k <= 5, channels (3, 1) and (2, 2), N <= 4; and (low, high) exchanged for even k"
)
def swapped_and_flipped_is_the_transpose(_: int) -> str:
    for (h, g), k, n in itertools.product(((3, 1), (2, 2)), (1, 2, 3, 4, 5), (2, 4)):
        low, high = (k - 1) // 2, k // 2
        for kernel in unit_kernels(h * g, (k, k)).reshape(-1, h, g, k, k):
            matrix = convla.ConvOperator(kernel, (n, n)).to_dense()
            padding = [(k - 1 - low, k - 1 - high)] * 2
            other = convla.ConvOperator(identities.adjoint_kernel(kernel), (n, n), padding=padding).to_dense()
            assert np.array_equal(other, matrix.T), f"h = {h}, g = {g}, k = {k}, N = {n}"
    return "20 sizes"


STATEMENTS = (
    Statement(
        id="RCK-1.1",
        number="Eqs. (1.1), (1.2)",
        title="same-size convolution",
        claim=r"$y_{r,s,c} = \sum_d\sum_{p,q} x_{r-m+p,\,s-m+q,\,d}\,k_{p,q,d,c}$ with $m = \lceil k/2\rceil$ and zeros "
        r"outside the image is cross-correlation with same padding, for even $k$ too.",
        verdict=Verdict.HOLDS,
        evidence=(printed_convolution_on_the_bases,),
        functions=(
            "convla.cross_correlate",
            "convla.kernel_from_hwio",
        ),
        note="It pads m - 1 before and k - m after each axis.",
    ),
    Statement(
        id="RCK-2.1",
        number="Eq. (2.1)",
        title="the doubly block Toeplitz matrix",
        claim=r"$\mathrm{vec}(Y) = M\,\mathrm{vec}(X)$, vec stacking columns, with $M$ block Toeplitz of blocks $A_1$, "
        r"$A_0$, $A_{-1}$, the Toeplitz matrices of the first, second and third row of $K$.",
        verdict=Verdict.CORRECTED,
        correction="The printed blocks are those of row stacking. For vec() that stacks columns read K transposed, or make "
        "the blocks of K's columns. Singular values are the same.",
        evidence=(
            printed_blocks_stack_rows,
            stacking_columns_transposes_the_kernel,
            printed_blocks_do_not_stack_columns,
        ),
        functions=("convla.doubly_block_toeplitz",),
    ),
    Statement(
        id="RCK-2.4",
        number="Eq. (2.4)",
        title="the matrix of several channels",
        claim=r"$\mathbb{M} = [M_{(c)(d)}]$ with $M_{(c)(d)}$ the matrix of $K_{:,:,d,c}$, and vec stacking channel after "
        r"channel.",
        verdict=Verdict.HOLDS,
        evidence=(block_matrix_on_the_bases, sparse_matrices_are_the_dense_ones),
        functions=(
            "convla.convolution_matrix",
            "convla.doubly_block_toeplitz",
        ),
        note="With M of each plane as corrected in RCK-2.1.",
    ),
    Statement(
        id="RCK-count",
        number="Section 1",
        title="equations and unknowns of an orthogonal convolution",
        claim=r"$M^T M = I$ is $gN^2(gN^2+1)/2$ equations for $k^2gh$ parameters.",
        verdict=Verdict.HOLDS,
        evidence=(equations_and_unknowns,),
        functions=("convla.ConvGeometry.shape",),
    ),
    Statement(
        id="RCK-reshape",
        number="Section 1",
        title="the matrix of filters",
        claim=r"The kernel in $\mathbb{R}^{k\times k\times g\times h}$ reshaped is an $h \times (gk)$ matrix $W$, and to "
        r"constrain $W$ has no clear impact on $M$.",
        verdict=Verdict.CORRECTED,
        correction=r"It is $h\times(gk^2)$. It has an impact, if a weak one: $\sigma_{\max}(M)$ is at most k times the norm of W for "
        r"stride 1, and that is sharp; of $\sigma_{\min}(M)$ it says nothing. See OIC-norm.",
        evidence=(a_filter_has_as_many_weights_as_taps, norm_is_at_most_the_root_of_the_taps, bound_is_sharp),
        functions=(
            "convla.ConvOperator.to_dense",
            "convla.kernel_from_hwio",
        ),
    ),
    Statement(
        id="RCK-periodic",
        number="Section 1",
        title="orthogonal periodic convolutions",
        claim=r"For one-channel periodic convolution with $k = N$, $M$ is diagonal after discrete Fourier transforms, so it "
        r"is orthogonal exactly if the transform of $K$ has moduli 1.",
        verdict=Verdict.HOLDS,
        evidence=(periodic_full_size_kernels,),
        functions=("convla.doubly_block_circulant",),
    ),
    Statement(
        id="RCK-dual",
        number="Example 1, Figure 3.1",
        title="kernels 3x3x3x1 and 3x3x1x3",
        claim="A kernel with its channels swapped and its taps flipped has the transposed matrix, for same padding and odd "
        "k: the same singular values, but another penalty, because M^T M becomes M M^T.",
        verdict=Verdict.HOLDS,
        evidence=(swapped_and_flipped_is_the_transpose, adjoints_have_other_penalties),
        functions=("convla.identities.adjoint_kernel",),
        note="For even k the padding before and after each axis change places.",
    ),
)
