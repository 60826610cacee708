"""Cross-correlation, convolution, and the two adjoints: the layer as functions of its image and of its kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convla._array import is_exact, namespace
from convla._checks import check_integer_range, check_kernel, check_signal, match_dtypes
from convla._validate import check_array, check_integer, check_sizes
from convla._windows import correlate, correlate_image_adjoint, correlate_kernel_adjoint
from convla.errors import ShapeError
from convla.geometry import ConvGeometry
from convla.typing import AnyArray, Array, ArrayLike, Boundary, Engine, Padding

__all__ = ["convolve", "cross_correlate", "flip_kernel", "image_adjoint", "kernel_adjoint"]


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
) -> AnyArray:
    """Slide a kernel over an image and sum the products: the operation of a convolutional layer.

    Parameters
    ----------
    image : array of shape (..., c_in, *image)
        One image or a batch; float32, float64, integers, or a NumPy object array of exact numbers.
    kernel : array of shape (c_out, c_in // groups, *kernel)
        Of the same library and dtype. One to three kernel axes.
    padding, stride, dilation, groups, boundary
        See `ConvGeometry`.
    engine : Engine
        Which kernel runs the operation, see `convla.typing.Engine`. For many taps "auto" takes "fft", whose error is
        small next to the norm of the result (about ``log2(n) 2^-53`` times the norms of image and kernel); "direct"
        asks for sums of products, whose error is bounded for each entry.

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
    return correlate(image, kernel, geometry, engine=engine)


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
) -> AnyArray:
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
    return correlate(image, flip_kernel(kernel), geometry, engine=engine)


def image_adjoint(
    features: ArrayLike,
    kernel: ArrayLike,
    *,
    image_shape: Sequence[int],
    padding: Padding,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
    engine: Engine = "auto",
) -> AnyArray:
    """Apply the transpose of cross-correlation as a map of the image: back-propagation to a layer's input.

    Parameters
    ----------
    features : array of shape (..., c_out, *output)
    kernel : array of shape (c_out, c_in // groups, *kernel)
    image_shape : sequence of int
        The sizes of the image without its channels; with a stride, several images have features of one shape.
    padding, stride, dilation, groups, boundary, engine
        As for `cross_correlate`.

    Returns
    -------
    array of shape (..., c_in, *image)
        ``M^T vec(features)``, with ``<cross_correlate(x, kernel), y> = <x, image_adjoint(y, kernel)>`` for all x, y.

    Raises
    ------
    TypeError, ShapeError, ValueError, OverflowError, EngineError
        As `cross_correlate`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import image_adjoint
    >>> features, difference = np.array([[1.0, 0.0]]), np.array([[[-1.0, 0.0, 1.0]]])
    >>> image_adjoint(features, difference, image_shape=(4,), padding="valid")
    array([[-1.,  0.,  1.,  0.]])
    """
    xp = namespace(features, kernel)
    kernel = check_kernel(kernel, xp)
    features = check_array(
        "features", features, xp, min_ndim=kernel.ndim - 1, axes=f"(..., c_out, *output), {kernel.ndim - 2} output axes"
    )
    geometry = ConvGeometry(
        tuple(kernel.shape),
        image_shape,
        padding=padding,
        stride=stride,
        dilation=dilation,
        groups=groups,
        boundary=boundary,
    )
    check_signal("features", features, geometry.range_shape, geometry)
    features, kernel = match_dtypes("features", features, "kernel", kernel, xp)
    if is_exact(features):  # the count takes longer than many a convolution
        check_integer_range(features, kernel, geometry.largest_column_count)
    return correlate_image_adjoint(features, kernel, geometry, engine=engine)


def kernel_adjoint(
    features: ArrayLike,
    image: ArrayLike,
    *,
    kernel_size: Sequence[int],
    padding: Padding,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
    engine: Engine = "auto",
) -> AnyArray:
    """Apply the transpose of cross-correlation as a map of the kernel: a layer's weight gradient.

    Parameters
    ----------
    features : array of shape (..., c_out, *output)
    image : array of shape (..., c_in, *image)
        With the same leading axes, over which the result is summed.
    kernel_size : sequence of int
        The sizes of the kernel without its channels.
    padding, stride, dilation, groups, boundary, engine
        As for `cross_correlate`.

    Returns
    -------
    array of shape (c_out, c_in // groups, *kernel)
        With ``<cross_correlate(image, k), features> = <k, kernel_adjoint(features, image)>`` for every kernel k.

    Raises
    ------
    TypeError, ShapeError, ValueError, OverflowError, EngineError
        As `cross_correlate`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import kernel_adjoint
    >>> features, image = np.array([[1.0, 0.0]]), np.array([[5.0, 6.0, 7.0, 8.0]])
    >>> kernel_adjoint(features, image, kernel_size=(3,), padding="valid")
    array([[[5., 6., 7.]]])
    """
    xp = namespace(features, image)
    kernel_size = check_sizes("kernel_size", kernel_size)
    ndim = len(kernel_size)
    if not 1 <= ndim <= 3:
        raise ShapeError(f"kernel_size must have 1 to 3 axes, got {kernel_size}")
    image = check_array("image", image, xp, min_ndim=ndim + 1, axes=f"(..., c_in, *image) with {ndim} image axes")
    features = check_array(
        "features", features, xp, min_ndim=ndim + 1, axes=f"(..., c_out, *output), {ndim} output axes"
    )
    in_channels, out_channels = image.shape[-ndim - 1], features.shape[-ndim - 1]
    if in_channels % check_integer("groups", groups, minimum=1):
        raise ShapeError(f"groups must divide the number of image channels {in_channels}, got {groups}")
    geometry = ConvGeometry(
        (out_channels, in_channels // groups, *kernel_size),
        tuple(image.shape[-ndim:]),
        padding=padding,
        stride=stride,
        dilation=dilation,
        groups=groups,
        boundary=boundary,
    )
    check_signal("features", features, geometry.range_shape, geometry)
    batch = tuple(image.shape[: -ndim - 1])
    if tuple(features.shape[: -ndim - 1]) != batch:
        raise ShapeError(
            f"features and image must have the same leading axes, got {tuple(features.shape)} and {tuple(image.shape)}"
        )
    features, image = match_dtypes("features", features, "image", image, xp)
    check_integer_range(features, image, math.prod(batch) * math.prod(geometry.output_shape))
    return correlate_kernel_adjoint(features, image, geometry, engine=engine)


def flip_kernel(kernel: Array) -> Array:
    """Return a kernel (c_out, c_in, *kernel) reversed along each of its kernel axes.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.conv import flip_kernel
    >>> flip_kernel(np.array([[[1, 2, 3]]]))
    array([[[3, 2, 1]]])
    """
    return namespace(kernel).flip(kernel, axis=tuple(range(2, kernel.ndim)))


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
    check_signal("image", image, geometry.domain_shape, geometry)
    image, kernel = match_dtypes("image", image, "kernel", kernel, xp)
    check_integer_range(image, kernel, math.prod(geometry.kernel_shape[1:]))
    return image, kernel, geometry
