"""Orthonormalised gradients: the polar factor of a layer's gradient, exact or by polynomials of its Gram matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from convla._array import describe, device_of, is_on_gpu, namespace, to_numbers
from convla._products import product
from convla._threads import blas_on_one_thread
from convla._validate import check_choice, check_floating, check_integer, check_real
from convla.errors import ShapeError
from convla.typing import AnyArray, Array, ArrayLike, Namespace

__all__ = ["orthonormalize", "orthonormalize_layers", "orthonormalize_operator", "polar_express_coefficients"]

# K. Jordan et al., Muon: five steps with these coefficients move every singular value that is not tiny to about 1.
MUON_STEPS = 5
MUON_COEFFICIENTS = (3.4445, -4.7750, 2.0315)

# Rounding moves the Gram matrix by some d = float64's roundoff times its largest eigenvalue. To first order that moves
# the polar factor, between singular vectors i and j, by d / (s_i (s_i + s_j)): up to the roundoff times the squared
# condition number over 2. No later step takes it back, for what is antisymmetric in it turns the factor into another
# isometry. So the Gram matrix is used down to these ratios of its extreme eigenvalues, where the roundoff over the
# ratio is a quarter of the distance that is promised.
GRAM_RESOLVES = {"float32": 1e-9, "float64": 1e-4}
# On a GPU the Jacobi sweeps of batched eigenvalue decompositions take ten times as long as the products of the
# polynomials that settle all singular values above this fraction of the largest.
PRODUCTS_RESOLVE = 1e-4
# Up to this condition number, the product with the gradient in float32 leaves the rows orthonormal to within 1e-6, for
# square matrices too, whose rows are the least orthonormal (measured at 1024 x 1024: 0.8e-6).
FLOAT32_PRODUCT = 9.0
# And above this singular value, whose inverse is well within the range of float32.
FLOAT32_LEAST = 1e-30

OrthonormalMethod = Literal["exact", "svd", "newton-schulz", "polar-express"]
RankDeficient = Literal["partial", "complete"]


@blas_on_one_thread()
def orthonormalize(
    gradient: ArrayLike,
    *,
    method: OrthonormalMethod = "exact",
    batch_axes: int = 0,
    groups: int = 1,
    rank_deficient: RankDeficient = "partial",
    rtol: float | None = None,
    lower_bound: float = 1e-5,
) -> AnyArray:
    """Return the orthonormal polar factor U V^T of a layer's gradient, seen as a matrix of filters times taps.

    Parameters
    ----------
    gradient : array of shape (..., c_out, c_in, *kernel)
        float32, float64, or integers (taken as float64); at least two axes after the batch.
    method : {"exact", "svd", "newton-schulz", "polar-express"}
        "exact" takes the eigenvectors of the smaller Gram matrix in float64, and a QR factorisation followed by an SVD
        where that would lose accuracy; for float32 on a GPU polynomials in float64, where these settle. "svd" is the
        source's, in float64. "newton-schulz" is Muon's polynomial, which leaves singular values between about 0.7 and
        1.2 and small ones smaller; "polar-express" composes minimax polynomials for all singular values above
        `lower_bound`.
    batch_axes : int, default 0
        How many leading axes count layers of equal shape, each taken by itself.
    groups : int, default 1
        Of the layer, dividing c_out: each group of filters sees channels of its own and is taken by itself. For a
        depthwise layer, with ``groups=c_out``, that divides each filter by its norm.
    rank_deficient : {"partial", "complete"}
        For "exact" and "svd": "partial" leaves out the directions whose singular values count as zero, "complete" gives
        them arbitrary orthonormal ones, as the source's code does. A gradient of zeros gives zeros in both.
    rtol : float, optional
        For "exact" and "svd": singular values up to this times the largest count as zero. By default the larger of 4
        times the dtype's epsilon, which rounding of the entries can do to them, and the longer side times float64's
        epsilon, which the computation can.
    lower_bound : float, default 1e-5
        For "polar-express": the least singular value to be brought to 1, relative to an upper bound on the largest.

    Returns
    -------
    array of the shape and dtype of `gradient`
        With orthonormal rows (filters), or orthonormal columns where there are more filters than taps.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the gradient is no array of finite real numbers with enough axes, or one of half precision, or another
        argument is none of those above.

    Notes
    -----
    U V^T is the nearest matrix with orthonormal rows in the Frobenius norm, and does not depend on the gradient's
    scale. Where the rank is deficient it is not unique, and it is discontinuous there.

    Relative distance to the polar factor (Frobenius), for a condition number c of what does not count as zero:

    - "svd": the dtype's rounding, plus at most about 10 c times float64's roundoff.
    - "exact": below 1e-6 in float32, for any c. In float64 at most about c^2 times float64's roundoff, and so below
      1e-11, while c is below 100; then as "svd".
    - "polar-express": below 1e-6 in float32 and 1e-7 in float64 while c is a few times below 1 / `lower_bound`;
      beyond, up to 1 in the directions below it.
    - "newton-schulz": 0.1 to 0.3 up to c = 100, 0.5 to 0.6 for c = 1e4, 0.8 for c = 1e8.

    References
    ----------
    Orthonormalising gradients improves neural network optimisation (OGN), Eqs. (3)-(5), Section 4.4. K. Jordan et al.,
    Muon, 2024. N. Amsel et al., The Polar Express, arXiv:2505.16932.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import orthonormalize
    >>> orthonormalize(np.array([[[3.0, 4.0]], [[-8.0, 6.0]]]))
    array([[[ 0.6,  0.8]],
    <BLANKLINE>
           [[-0.8,  0.6]]])
    """
    xp = namespace(gradient)
    batch = check_integer("batch_axes", batch_axes, minimum=0)
    gradient = check_floating("gradient", gradient, xp, min_ndim=batch + 2, axes="(..., c_out, c_in, *kernel)")
    lower_bound = _check_options(method, rank_deficient, lower_bound)
    wide, tall = _wide_matrices(gradient, batch, _check_groups(groups, gradient.shape[batch]), xp)
    tolerance = _tolerance(rtol, wide, xp)
    isometry = METHODS[method](wide, xp, tolerance, rank_deficient == "complete", lower_bound)
    return _in_the_shape_of(gradient, isometry, tall, xp)


@blas_on_one_thread()
def orthonormalize_layers(
    gradients: Mapping[str, ArrayLike],
    *,
    method: OrthonormalMethod = "exact",
    rank_deficient: RankDeficient = "partial",
    rtol: float | None = None,
    lower_bound: float = 1e-5,
) -> dict[str, AnyArray]:
    """Return the orthonormal polar factors of a network's gradients, with few launches on a GPU.

    Parameters
    ----------
    gradients : mapping of str to array of shape (c_out, c_in, *kernel)
        The layers by name, of one library.
    method, rank_deficient, rtol, lower_bound
        As for `orthonormalize`.

    Returns
    -------
    dict of str to array
        By name, of the gradients' shapes and dtypes.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `orthonormalize`; what an array is blamed for begins with the layer's name.

    Notes
    -----
    On a GPU, where a launch costs more than the work on a small layer, matrices whose smaller side and dtype agree are
    filled up with columns of zeros and run as one stack: zeros change neither the Gram matrix nor the polar factor. For
    "complete" both sides have to agree.
    Elsewhere each layer runs by itself.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import orthonormalize_layers
    >>> orthonormalize_layers({"first": np.array([[3.0, 4.0]]), "second": np.array([[0.0, -2.0]])})
    {'first': array([[0.6, 0.8]]), 'second': array([[ 0., -1.]])}
    """
    if not isinstance(gradients, Mapping):
        raise TypeError(f"gradients must be a mapping of layers by name, got {describe(gradients)}")
    lower_bound = _check_options(method, rank_deficient, lower_bound)
    xp = namespace(*gradients.values())
    layers: dict[str, tuple[Array, Array, bool]] = {}
    stacks: dict[Any, list[str]] = {}
    for name, value in gradients.items():
        try:
            gradient = check_floating("gradient", value, xp, min_ndim=2, axes="(c_out, c_in, *kernel)")
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {name}: {error}") from error
        wide, tall = _wide_matrices(gradient, 0, 1, xp)
        layers[name] = gradient, wide, tall
        # An arbitrary direction may lie among the columns that are filled up: then these are the same for all.
        sides = wide.shape[1:] if rank_deficient == "complete" else wide.shape[1:2]
        kind = (*sides, str(wide.dtype), _tolerance(rtol, wide, xp)) if is_on_gpu(wide) else name
        stacks.setdefault(kind, []).append(name)
    found: dict[str, Array] = {}
    for names in stacks.values():
        matrices = [layers[name][1] for name in names]
        longest = max(matrix.shape[2] for matrix in matrices)
        stack = xp.concat([_filled_up(matrix, longest, xp) for matrix in matrices], axis=0)
        tolerance = _tolerance(rtol, matrices[0], xp)
        isometries = METHODS[method](stack, xp, tolerance, rank_deficient == "complete", lower_bound)
        for place, name in enumerate(names):
            gradient, wide, tall = layers[name]
            found[name] = _in_the_shape_of(gradient, isometries[place : place + 1, :, : wide.shape[2]], tall, xp)
    return {name: found[name] for name in gradients}


def _check_options(method: str, rank_deficient: str, lower_bound: float) -> float:
    check_choice("method", method, get_args(OrthonormalMethod))
    check_choice("rank_deficient", rank_deficient, get_args(RankDeficient))
    lower_bound = check_real("lower_bound", lower_bound, minimum=1e-12, maximum=1.0)
    if rank_deficient == "complete" and method not in ("exact", "svd"):
        raise ValueError(f"rank_deficient must be 'partial' for method {method!r}, which completes nothing")
    return lower_bound


def _wide_matrices(gradient: Array, batch: int, groups: int, xp: Namespace) -> tuple[Array, bool]:
    """Return the matrices of filters times taps, transposed where they are tall, and whether they are."""
    shape = tuple(gradient.shape)
    # Rows are contiguous: the groups of a layer count as layers of a batch.
    matrices = xp.reshape(gradient, (-1, shape[batch] // groups, math.prod(shape[batch + 1 :])))
    tall = matrices.shape[1] > matrices.shape[2]
    return (xp.matrix_transpose(matrices) if tall else matrices), tall


def _in_the_shape_of(gradient: Array, isometry: Array, tall: bool, xp: Namespace) -> Array:
    isometry = xp.astype(xp.matrix_transpose(isometry) if tall else isometry, gradient.dtype, copy=False)
    return xp.reshape(isometry, tuple(gradient.shape))


def _tolerance(rtol: float | None, wide: Array, xp: Namespace) -> float:
    if rtol is None:
        rtol = max(4 * xp.finfo(wide.dtype).eps, wide.shape[2] * float(np.finfo(np.float64).eps))
    return check_real("rtol", rtol, minimum=0.0, maximum=1.0)


def _filled_up(matrices: Array, columns: int, xp: Namespace) -> Array:
    """Return matrices with columns of zeros after their own, up to so many."""
    count, rows, own = matrices.shape
    if own == columns:
        return matrices
    zeros = xp.zeros((count, rows, columns - own), dtype=matrices.dtype, device=device_of(matrices))
    return xp.concat([matrices, zeros], axis=2)


@blas_on_one_thread()
def orthonormalize_operator(
    gradient: ArrayLike, image_shape: Sequence[int], *, groups: int = 1, rtol: float | None = None
) -> AnyArray:
    """Return the projection to the kernel's support of the orthonormalised gradient of the layer's operator.

    The circular layer is orthonormalised as a linear map of images, which is at each frequency a matrix of c_out times
    c_in; the resulting kernel is as large as the image, and all but the taps of `gradient` are dropped.

    Parameters
    ----------
    gradient : array of shape (c_out, c_in, *kernel)
        float32, float64, or integers (taken as float64); one to three kernel axes.
    image_shape : sequence of int
        The sizes of the image, none below the kernel's.
    groups : int, default 1
        Of the layer, dividing c_out; the operator is block diagonal, and each block is taken by itself.
    rtol : float, optional
        Singular values of the operator up to this times its largest count as zero; the default is as in
        `orthonormalize`.

    Returns
    -------
    array of the shape and dtype of `gradient`

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the gradient is no array of finite real numbers of that shape, or the image does not hold the kernel.

    Notes
    -----
    Before the projection every singular value of the operator is 1, against up to the root of the number of taps for
    `orthonormalize`, which makes the filters orthonormal and not the layer. The projection, which is the nearest kernel
    of the given support, undoes some of that. The cost is one small SVD for every second frequency: for N positions,
    N c_out c_in min(c_out, c_in) against taps c_out c_in min(c_out, taps c_in) for the matrix of filters.

    Examples
    --------
    A kernel whose layer is an isometry already keeps its direction:

    >>> import numpy as np
    >>> from convla import orthonormalize_operator
    >>> np.round(orthonormalize_operator(np.array([[[0.0, 5.0, 0.0]]]), (8,)), 12)
    array([[[0., 1., 0.]]])
    """
    xp = namespace(gradient)
    gradient = check_floating("gradient", gradient, xp, min_ndim=3, axes="(c_out, c_in, *kernel)")
    shape = tuple(gradient.shape)
    image = tuple(check_integer("every entry of image_shape", n, minimum=1) for n in image_shape)
    if len(shape) > 5 or len(image) != len(shape) - 2 or any(n < k for n, k in zip(image, shape[2:], strict=True)):
        raise ShapeError(
            f"image_shape must have one entry, not below the kernel's, for each of the 1 to 3 kernel axes of gradient, "
            f"got {image} for shape {shape}"
        )
    blocks = _check_groups(groups, shape[0])
    if rtol is None:
        rtol = max(4 * xp.finfo(gradient.dtype).eps, max(shape[:2]) * float(np.finfo(np.float64).eps))
    rtol = check_real("rtol", rtol, minimum=0.0, maximum=1.0)
    wide = _scaled(xp.reshape(xp.astype(gradient, xp.float64), (blocks, -1, *shape[1:])), xp)
    axes = tuple(range(3, wide.ndim))
    symbol = xp.permute_dims(xp.fft.rfftn(wide, s=image, axes=axes), (0, *axes, 1, 2))
    u, values, vh = xp.linalg.svd(symbol, full_matrices=False)
    largest = xp.max(values, axis=tuple(range(1, values.ndim)), keepdims=True)  # of each group
    kept = xp.astype((values > rtol * largest) & (values > 0), symbol.dtype)
    isometries = xp.permute_dims(
        (u * kept[..., None, :]) @ vh, (0, len(axes) + 1, len(axes) + 2, *(axis - 2 for axis in axes))
    )
    full = xp.fft.irfftn(isometries, s=image, axes=axes)
    return xp.reshape(xp.astype(full[(..., *(slice(k) for k in shape[2:]))], gradient.dtype), shape)


def _check_groups(groups: int, filters: int) -> int:
    count = check_integer("groups", groups, minimum=1)
    if filters % count:
        raise ShapeError(f"groups must divide the {filters} filters of gradient, got {count}")
    return count


@functools.lru_cache(maxsize=32)
def polar_express_coefficients(lower_bound: float, tolerance: float) -> tuple[tuple[float, float, float], ...]:
    """Return odd quintics whose composition maps [lower_bound, 1] to within `tolerance` of 1.

    Parameters
    ----------
    lower_bound, tolerance : float
        Both above 0.

    Returns
    -------
    tuple of (a, b, c)
        Each the polynomial ``a x + b x^3 + c x^5`` with the least largest distance to 1 on the interval that those
        before it leave, less than a hundredth wider: an interval's upper end goes to the upper end of the next, and
        errors there would grow from each step to the next.

    References
    ----------
    N. Amsel et al., The Polar Express, arXiv:2505.16932, Theorem 3.1 and Algorithm 1.

    Examples
    --------
    >>> from convla.orthonormal import polar_express_coefficients
    >>> [len(polar_express_coefficients(bound, 1e-3)) for bound in (0.5, 1e-3, 1e-6)]
    [2, 7, 11]
    """
    low, high = lower_bound, 1.0
    steps = []
    while True:
        a, b, c = _minimax_quintic(low, high)
        steps.append((a, b, c))
        low = low * (a + low * low * (b + low * low * c))
        if 1 - low <= tolerance:
            return tuple(steps)
        high = 1.005 * (2 - low)  # the error at the upper end is that at the lower


def _minimax_quintic(low: float, high: float) -> tuple[float, float, float]:
    """Return the odd quintic nearest to 1 on [low, high], by Remez' exchange: its error has four equal extrema."""
    if low >= 0.98:
        # The exchange is ill-conditioned here, and the quintic with 1 - p(x) = O((1 - x)^3) as good.
        return 15 / 8, -10 / 8, 3 / 8
    inner = np.array([0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    error = 0.0
    while True:
        x = np.array([low, *inner, high])
        a, b, c, level = (float(v) for v in np.linalg.solve(np.stack([x, x**3, x**5, signs], axis=1), np.ones(4)))
        # The inner extrema of the error are the roots of the derivative a + 3 b x^2 + 5 c x^4.
        root = math.sqrt(9 * b * b - 20 * a * c)
        inner = np.sqrt(np.array([-3 * b - root, -3 * b + root]) / (10 * c))
        if abs(level - error) <= 1e-12:
            return a, b, c
        error = level


def _polar_factors(matrices: Array, xp: Namespace, rtol: float, complete: bool, _: float) -> Array:
    if is_on_gpu(matrices) and matrices.dtype == xp.float32 and rtol < PRODUCTS_RESOLVE:
        return _by_products(matrices, xp, rtol, complete)
    return _exact(matrices, xp, rtol, complete, _)


def _by_products(matrices: Array, xp: Namespace, rtol: float, complete: bool) -> Array:
    """Return the factors of float32 matrices by products in float64 where these have settled, else by eigenvectors.

    Settled are those whose rows are orthonormal: their singular values are all above the lower bound of the
    polynomials, or about there, so that no rank is lacking, and rounding has moved the factor by about float64's
    roundoff over the square of that bound.
    """
    isometries = _polar_express(xp.astype(matrices, xp.float64), xp, rtol, complete, PRODUCTS_RESOLVE)
    rows = matrices.shape[1]
    defect = isometries @ xp.matrix_transpose(isometries) - xp.eye(rows, dtype=xp.float64, device=device_of(matrices))
    # The values are off 1 by half of it: relative to the factor in the Frobenius norm, a tenth of float32's roundoff.
    settled = [square <= 1e-16 * rows for square in to_numbers(xp.sum(defect * defect, axis=(1, 2)))]
    if all(settled):
        return isometries
    rest = [i for i, flag in enumerate(settled) if not flag]
    found = _exact(xp.stack([matrices[i, ...] for i in rest]), xp, rtol, complete, 0.0)
    each = dict(zip(rest, (xp.astype(found[j, ...], xp.float64) for j in range(len(rest))), strict=True))
    return xp.stack([each.get(i, isometries[i, ...]) for i in range(len(settled))])


def _exact(matrices: Array, xp: Namespace, rtol: float, complete: bool, _: float) -> Array:
    single = matrices.dtype == xp.float32
    # Squares of float32 numbers neither overflow nor vanish in float64; those of float64 numbers can.
    wide = xp.astype(matrices, xp.float64) if single else _scaled(matrices, xp)
    eigenvalues, vectors = xp.linalg.eigh(product(wide, xp.matrix_transpose(wide)))
    largest = eigenvalues[:, -1:]
    kept = eigenvalues > max(rtol**2, GRAM_RESOLVES["float32" if single else "float64"]) * largest
    # Gradients of few images have few singular values beside the roundoff of float32, which float64 tells from 0.
    blur = 4 * wide.shape[1] ** 0.5 * float(xp.finfo(xp.float64).eps)
    known = kept if complete or not single else kept | (eigenvalues <= (rtol**2 - blur) * largest)
    resolved = (largest[:, 0] > 0) & xp.all(known, axis=1)
    safe = xp.where(kept, eigenvalues, xp.ones_like(eigenvalues))
    # A matrix times its own transpose costs NumPy half a product.
    half = vectors * (xp.astype(kept, wide.dtype) / xp.sqrt(xp.sqrt(safe)))[:, None, :]
    inverse_root = product(half, xp.matrix_transpose(half))
    least = xp.min(xp.where(kept, eigenvalues, largest), axis=1)
    narrow = resolved & (largest[:, 0] <= FLOAT32_PRODUCT**2 * least) & (least >= FLOAT32_LEAST**2)
    if single and bool(xp.all(narrow)):
        return product(xp.astype(inverse_root, xp.float32), matrices)
    isometries = product(inverse_root, wide)
    if bool(xp.all(resolved)):
        return isometries
    each = [
        isometries[i, ...] if bool(resolved[i]) else _by_qr(wide[i, ...], xp, rtol, complete)
        for i in range(wide.shape[0])
    ]
    return xp.stack(each)


def _by_qr(wide: Array, xp: Namespace, rtol: float, complete: bool) -> Array:
    # The SVD of the small triangular factor, at the accuracy of one of the whole.
    q, r = xp.linalg.qr(xp.matrix_transpose(wide))
    small = _isometry(xp.matrix_transpose(r)[None, ...], xp, rtol, complete)
    return product(small[0, ...], xp.matrix_transpose(q))


def _by_svd(matrices: Array, xp: Namespace, rtol: float, complete: bool, _: float) -> Array:
    return _isometry(_scaled(xp.astype(matrices, xp.float64), xp), xp, rtol, complete)


def _isometry(matrices: Array, xp: Namespace, rtol: float, complete: bool) -> Array:
    u, values, vh = xp.linalg.svd(matrices, full_matrices=False)
    largest = values[:, :1]
    kept = (largest > 0) & (complete | (values > rtol * largest))
    return product(u * xp.astype(kept, u.dtype)[:, None, :], vh)


def _newton_schulz(matrices: Array, xp: Namespace, _: float, __: bool, ___: float) -> Array:
    scaled = _scaled(matrices, xp)
    length = xp.sqrt(xp.sum(scaled * scaled, axis=(1, 2), keepdims=True))
    unit = scaled / xp.where(length > 0, length, xp.ones_like(length))
    return _compose(unit, product(unit, xp.matrix_transpose(unit)), (MUON_COEFFICIENTS,) * MUON_STEPS, xp)


def _polar_express(matrices: Array, xp: Namespace, _: float, __: bool, lower_bound: float) -> Array:
    # Evaluating a polynomial at 1 takes a few roundings.
    coefficients = polar_express_coefficients(lower_bound, 8 * float(xp.finfo(matrices.dtype).eps))
    wide = _scaled(xp.astype(matrices, xp.float64), xp)
    gram = product(wide, xp.matrix_transpose(wide))
    # The root of the Gram matrix's Frobenius norm: at least the largest singular value, and nearer than their root sum.
    square = xp.sqrt(xp.sum(gram * gram, axis=(1, 2), keepdims=True))
    square = xp.where(square > 0, square, xp.ones_like(square))
    return _compose(wide / xp.sqrt(square), gram / square, coefficients, xp)


def _compose(matrices: Array, gram: Array, coefficients: Sequence[tuple[float, float, float]], xp: Namespace) -> Array:
    """Return the composition of odd quintics at `matrices`, whose Gram matrix is `gram`.

    Each polynomial p(X) = (a + b X X^T + c (X X^T)^2) X is a polynomial q of the Gram matrix times X, and the next Gram
    matrix is q G q: all but the last product stay on the small side.
    """
    identity = xp.eye(gram.shape[1], dtype=gram.dtype, device=device_of(gram))
    total = identity
    for step, (a, b, c) in enumerate(coefficients):
        # The square, written so that NumPy takes half a product for it.
        factor = a * identity + b * gram + c * product(gram, xp.matrix_transpose(gram))
        total = product(factor, total) if step else factor
        if step < len(coefficients) - 1:
            gram = product(product(factor, gram), factor)
    return product(total, matrices)


def _scaled(matrices: Array, xp: Namespace) -> Array:
    """Return each matrix divided by its largest entry, so that no square overflows or vanishes."""
    largest = xp.max(xp.abs(matrices), axis=tuple(range(1, matrices.ndim)), keepdims=True)
    return matrices / xp.where(largest > 0, largest, xp.ones_like(largest))


METHODS: dict[str, Callable[[Array, Any, float, bool, float], Array]] = {
    "exact": _polar_factors,
    "svd": _by_svd,
    "newton-schulz": _newton_schulz,
    "polar-express": _polar_express,
}
"""The function of each method: (matrices with no more rows than columns, namespace, rtol, complete, lower bound)."""
