"""Cross-correlation, convolution and their two adjoints, written once against the array API.

Each of the three maps is a sum over the taps of the kernel of one matrix product with a shifted window of the extended
image, so a BLAS does the work, and the same lines run on integers and on object arrays of exact polynomials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convla._array import device_of, is_exact, namespace, on_device_of
from convla._dispatch import accelerated
from convla._validate import check_array
from convla.errors import ShapeError
from convla.geometry import ConvGeometry
from convla.typing import Array, ArrayLike, Boundary, Engine, Namespace, Padding

__all__ = ["convolve", "cross_correlate", "flip_kernel"]


def cross_correlate(
    image: ArrayLike,
    kernel: ArrayLike,
    *,
    padding: Padding,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
    engine: Engine = "auto",
) -> Array:
    """Slide a kernel over an image and sum the products: the operation of a convolutional layer.

    Parameters
    ----------
    image : array of shape (..., c_in, *image)
        One image or a batch; float32, float64, integers, or a NumPy object array of exact numbers.
    kernel : array of shape (c_out, c_in // groups, *kernel)
        Of the same library and dtype. One to three kernel axes.
    padding, stride, dilation, groups, boundary
        See `ConvGeometry`.
    engine : {"auto", "reference", "numba", "cuda"}
        Which kernel runs the operation on the library's arrays; "auto" takes the one measured to be fastest.

    Returns
    -------
    array of shape (..., c_out, *output)
        The features, of the dtype of the arguments.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers, or the dtypes differ.
    ShapeError
        If the shapes do not fit each other.
    ValueError
        If an array holds NaN or infinity, or an option is out of range.
    OverflowError
        If integers could leave the range of their dtype.
    EngineError
        If the engine does not take these arrays.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Eqs. (1.1), (1.2).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import cross_correlate
    >>> image = np.array([[1.0, 2.0, 3.0, 4.0]])
    >>> difference = np.array([[[-1.0, 0.0, 1.0]]])
    >>> cross_correlate(image, difference, padding="valid")
    array([[2., 2.]])
    """
    image, kernel, geometry = _prepare(image, kernel, padding, stride, dilation, groups, boundary)
    return correlate_windows(image, kernel, geometry, engine=engine)


def convolve(
    image: ArrayLike,
    kernel: ArrayLike,
    *,
    padding: Padding,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
    engine: Engine = "auto",
) -> Array:
    """Convolve an image with a kernel: cross-correlation with the kernel flipped along each of its axes.

    Arguments, result and errors are those of `cross_correlate`; only the kernel is flipped, not the padding.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import convolve
    >>> one_plus_x = np.array([[1, 1]])
    >>> convolve(one_plus_x, one_plus_x[:, None, :][:1], padding="full")
    array([[1, 2, 1]])
    """
    image, kernel, geometry = _prepare(image, kernel, padding, stride, dilation, groups, boundary)
    return correlate_windows(image, flip_kernel(kernel), geometry, engine=engine)


def flip_kernel(kernel: Array) -> Array:
    """Return a kernel (c_out, c_in, *kernel) reversed along each of its kernel axes."""
    return kernel[(..., *(slice(None, None, -1),) * (kernel.ndim - 2))]


@accelerated("cross_correlate")
def correlate_windows(image: Array, kernel: Array, geometry: ConvGeometry) -> Array:
    """Cross-correlate checked arrays: the reference of the operation "cross_correlate"."""
    xp = namespace(image, kernel)
    batch = tuple(image.shape[: -geometry.ndim - 1])
    extended = extend(image, geometry, xp)
    weights = _taps_first(kernel, geometry, xp)
    features = None
    for weight, (_, window) in zip(weights, geometry.windows(), strict=True):
        term = xp.matmul(weight, _grouped(extended[(..., *window)], batch, geometry, xp))
        features = term if features is None else features + term
    return xp.reshape(features, (*batch, *geometry.range_shape))


def extend(image: Array, geometry: ConvGeometry, xp: Namespace) -> Array:
    """Extend images (..., c_in, *image) to (..., c_in, *padded) as the boundary says."""
    for axis, (low, high) in enumerate(geometry.padding):
        if (low, high) == (0, 0):
            continue
        along = axis - geometry.ndim
        if geometry.boundary == "zero":
            shape = list(image.shape)
            parts = []
            for amount in (low, high):
                shape[along] = amount
                parts.append(xp.zeros(tuple(shape), dtype=image.dtype, device=device_of(image)))
            image = xp.concat((parts[0], image, parts[1]), axis=along)
        else:
            image = xp.take(image, on_device_of(geometry.sources(axis), image, xp), axis=along)
    return image


def _taps_first(kernel: Array, geometry: ConvGeometry, xp: Namespace) -> list[Array]:
    """Return for every tap its matrices (groups, c_out // groups, c_in // groups), each contiguous for the BLAS."""
    out, inner, *_ = geometry.kernel_shape
    taps = xp.stack([kernel[(..., *tap)] for tap, _ in geometry.windows()])
    taps = xp.reshape(taps, (-1, geometry.groups, out // geometry.groups, inner))
    return [taps[t, ...] for t in range(taps.shape[0])]


def _grouped(array: Array, batch: tuple[int, ...], geometry: ConvGeometry, xp: Namespace) -> Array:
    """Return (..., channels, *positions) as (..., groups, channels // groups, positions)."""
    channels = array.shape[len(batch)]
    return xp.reshape(array, (*batch, geometry.groups, channels // geometry.groups, -1))


def _prepare(
    image: ArrayLike,
    kernel: ArrayLike,
    padding: Padding,
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    boundary: Boundary,
) -> tuple[Array, Array, ConvGeometry]:
    """Check the arguments of a cross-correlation and find its geometry."""
    xp = namespace(image, kernel)
    kernel = check_kernel(kernel, xp)
    ndim = kernel.ndim - 2
    image = check_array("image", image, xp, min_ndim=ndim + 1, axes=f"(..., c_in, *image) with {ndim} image axes")
    kernel_shape, image_shape = tuple(kernel.shape), tuple(image.shape)
    geometry = ConvGeometry(
        kernel_shape,
        image_shape[-ndim:],
        padding=padding,
        stride=stride,
        dilation=dilation,
        groups=groups,
        boundary=boundary,
    )
    check_channels("image", image_shape, geometry)
    image, kernel = match_dtypes("image", image, "kernel", kernel, xp)
    check_integer_range(image, kernel, geometry.kernel_shape[1] * int(np.prod(geometry.kernel_size)), xp)
    return image, kernel, geometry


def check_kernel(kernel: ArrayLike, xp: Namespace) -> Array:
    """Return `kernel` as an array (c_out, c_in // groups, *kernel) with one to three kernel axes."""
    array = check_array("kernel", kernel, xp, min_ndim=3, axes="(c_out, c_in // groups, *kernel)")
    if array.ndim > 5:
        raise ShapeError(f"kernel must have 1 to 3 axes after its channels, got shape {tuple(array.shape)}")
    return array


def check_channels(name: str, shape: tuple[int, ...], geometry: ConvGeometry) -> None:
    """Raise `ShapeError` unless an image of this shape has the channels that the kernel reads."""
    got = shape[-geometry.ndim - 1]
    if got != geometry.in_channels:
        raise ShapeError(
            f"{name} must have {geometry.in_channels} channels for a kernel of shape {geometry.kernel_shape} in "
            f"{geometry.groups} group(s), got {got} in shape {shape}"
        )


def match_dtypes(first: str, a: Array, second: str, b: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return both arrays in one dtype: integers follow a floating partner; unequal dtypes of one kind are refused."""
    if a.dtype == b.dtype:
        return a, b
    if object in (a.dtype, b.dtype):
        return xp.astype(a, object), xp.astype(b, object)
    if is_exact(a) and not is_exact(b):
        return xp.astype(a, b.dtype), b
    if is_exact(b) and not is_exact(a):
        return a, xp.astype(b, a.dtype)
    raise TypeError(f"{first} and {second} must have the same dtype, got {a.dtype} and {b.dtype}")


def check_integer_range(a: Array, b: Array, terms: int, xp: Namespace) -> None:
    """Raise `OverflowError` if a sum of `terms` products of entries of `a` and `b` could leave their integer dtype."""
    if a.dtype == object or not is_exact(a):
        return
    limit: Any = xp.iinfo(a.dtype).max
    largest = terms * _largest(a, xp) * _largest(b, xp)
    if largest > limit:
        raise OverflowError(
            f"sums of {terms} products can reach {largest}, beyond the largest {a.dtype}, {limit}: pass floating-point "
            "arrays, or object arrays of Python integers"
        )


def _largest(array: Array, xp: Namespace) -> int:
    """Return the largest modulus of an integer array, as a Python integer (the modulus of the least int64 is none)."""
    return max(int(xp.max(array)), -int(xp.min(array)))
