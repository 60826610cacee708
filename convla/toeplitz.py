"""The convolution written out as a matrix: Toeplitz, doubly block Toeplitz, circulant, and the multichannel M.

All forms are filled from the index maps of one `ConvGeometry`; none probes the operator column by column, and none
loops over entries in Python.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from convla._array import (
    available_memory,
    describe,
    device_of,
    is_cupy,
    is_numpy,
    namespace,
    on_device_of,
    sparse_library,
)
from convla._checks import check_integer_sums, check_kernel
from convla._validate import check_array, check_choice, check_integer, check_sizes
from convla._windows import correlate
from convla.errors import ShapeError
from convla.geometry import ORDERS, ConvGeometry
from convla.typing import AnyArray, Array, ArrayLike, Namespace, Padding

__all__ = [
    "MATRIX_FORMATS",
    "SPARSE_FORMATS",
    "check_room",
    "circulant_matrix",
    "convolution_matrix",
    "doubly_block_circulant",
    "doubly_block_toeplitz",
    "kernel_from_hwio",
    "toeplitz_matrix",
    "unchecked_matrix",
    "unvec",
    "vec",
]

SPARSE_FORMATS = ("csr", "csc", "coo")
MATRIX_FORMATS = ("dense", *SPARSE_FORMATS)

Order = Literal["C", "F"]
MatrixFormat = Literal["dense", "csr", "csc", "coo"]


def toeplitz_matrix(
    kernel: ArrayLike,
    length: int,
    padding: Padding = "same",
    *,
    format: MatrixFormat = "dense",  # noqa: A002
) -> Any:
    """Return the Toeplitz matrix of cross-correlation with a one-dimensional kernel, zero-padded.

    Parameters
    ----------
    kernel : array of shape (k,)
    length : int
        The number of samples of the signal: the columns of the matrix.
    padding : {"full", "same", "valid"}, int, or ((low, high),)
        See `ConvGeometry`.
    format : {"dense", "csr", "csc", "coo"}
        A dense array of the kernel's library, or a SciPy (CuPy) sparse array.

    Returns
    -------
    array or sparse array of shape (output, length)

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is not of the kind above, or the kernel is larger than the padded signal.
    MemoryError
        If the dense matrix would not fit in memory.

    Examples
    --------
    >>> from convla import toeplitz_matrix
    >>> toeplitz_matrix([1, 2, 3], 4, "same")
    array([[2, 3, 0, 0],
           [1, 2, 3, 0],
           [0, 1, 2, 3],
           [0, 0, 1, 2]])
    """
    kernel = check_array("kernel", kernel, namespace(kernel), ndim=1, axes="(k,)")
    length = check_integer("length", length, minimum=1)
    kernel = kernel[None, None, :]
    return convolution_matrix(kernel, ConvGeometry(tuple(kernel.shape), (length,), padding=padding), format=format)


def doubly_block_toeplitz(
    kernel: ArrayLike,
    image_shape: Sequence[int],
    padding: Padding = "same",
    *,
    order: Order = "C",
    format: MatrixFormat = "dense",  # noqa: A002
) -> Any:
    """Return the doubly block Toeplitz matrix of cross-correlation with a two-dimensional kernel, zero-padded.

    Parameters
    ----------
    kernel : array of shape (k, l)
    image_shape : (int, int)
    padding : {"full", "same", "valid"}, int, or ((low, high), (low, high))
        See `ConvGeometry`.
    order : {"C", "F"}
        Row-major or column-major vec() of image and features.
    format : {"dense", "csr", "csc", "coo"}
        As for `toeplitz_matrix`.

    Returns
    -------
    array or sparse array of shape (prod(output), prod(image))

    Raises
    ------
    TypeError, ShapeError, ValueError, MemoryError
        As `toeplitz_matrix`.

    Notes
    -----
    The blocks that Guo and Ye print under their Eq. (2.1) (row p of the kernel in block A_{m-p}) are those of
    ``order="C"``. Their text stacks columns; for that, ``order="F"``, the kernel in the printed blocks is to be read
    transposed. Both matrices have the same singular values.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Eq. (2.1).

    Examples
    --------
    >>> from convla import doubly_block_toeplitz
    >>> doubly_block_toeplitz([[1, 2], [3, 4]], (2, 2), "same")
    array([[1, 2, 3, 4],
           [0, 1, 0, 3],
           [0, 0, 1, 2],
           [0, 0, 0, 1]])
    """
    return _plane_matrix(kernel, image_shape, padding, "zero", order, format)


def circulant_matrix(kernel: ArrayLike, length: int, *, format: MatrixFormat = "dense") -> Any:  # noqa: A002
    """Return the circulant matrix of cross-correlation with a one-dimensional kernel on a periodic signal.

    Parameters and errors are those of `toeplitz_matrix`; the kernel is centred as by "same" padding.

    Returns
    -------
    array or sparse array of shape (length, length)

    Examples
    --------
    >>> from convla import circulant_matrix
    >>> circulant_matrix([1, 2, 3], 4)
    array([[2, 3, 0, 1],
           [1, 2, 3, 0],
           [0, 1, 2, 3],
           [3, 0, 1, 2]])
    """
    kernel = check_array("kernel", kernel, namespace(kernel), ndim=1, axes="(k,)")
    length = check_integer("length", length, minimum=1)
    kernel = kernel[None, None, :]
    geometry = ConvGeometry(tuple(kernel.shape), (length,), padding="same", boundary="circular")
    return convolution_matrix(kernel, geometry, format=format)


def doubly_block_circulant(
    kernel: ArrayLike,
    image_shape: Sequence[int],
    *,
    order: Order = "C",
    format: MatrixFormat = "dense",  # noqa: A002
) -> Any:
    """Return the block circulant matrix with circulant blocks of cross-correlation on a periodic image.

    Parameters and errors are those of `doubly_block_toeplitz`; the kernel is centred as by "same" padding.

    Returns
    -------
    array or sparse array of shape (prod(image), prod(image))

    Examples
    --------
    >>> from convla import doubly_block_circulant
    >>> doubly_block_circulant([[0, 1, 0], [0, 0, 2], [0, 0, 0]], (3, 2))
    array([[0, 2, 0, 0, 1, 0],
           [2, 0, 0, 0, 0, 1],
           [1, 0, 0, 2, 0, 0],
           [0, 1, 2, 0, 0, 0],
           [0, 0, 1, 0, 0, 2],
           [0, 0, 0, 1, 2, 0]])
    """
    return _plane_matrix(kernel, image_shape, "same", "circular", order, format)


def kernel_from_hwio(kernel: ArrayLike) -> AnyArray:
    """Return a kernel (*kernel, c_in, c_out), the layout of Guo and Ye and of TensorFlow, as (c_out, c_in, *kernel).

    Raises
    ------
    ShapeError
        If the kernel has not three to five axes.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Eq. (1.2).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import kernel_from_hwio
    >>> kernel_from_hwio(np.zeros((3, 3, 2, 5))).shape
    (5, 2, 3, 3)
    """
    xp = namespace(kernel)
    array = check_array("kernel", kernel, xp, min_ndim=3, axes="(*kernel, c_in, c_out)")
    if array.ndim > 5:
        raise ShapeError(f"kernel must have 1 to 3 axes before its channels, got shape {tuple(array.shape)}")
    return xp.permute_dims(array, (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2)))


def vec(array: ArrayLike, ndim: int, *, order: Order = "C") -> AnyArray:
    """Stack channels and positions into vectors: (..., c, *positions) to (..., c * prod(positions)).

    Parameters
    ----------
    array : array of shape (..., c, *positions)
    ndim : int
        The number of position axes.
    order : {"C", "F"}
        Whether the last ("C", rows) or the first ("F", columns) position axis varies fastest; channels vary slowest.

    Returns
    -------
    array of shape (..., c * prod(positions))

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Sec. 2.2, for ``order="F"``.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import vec
    >>> vec(np.array([[[1, 2], [3, 4]]]), 2, order="F")
    array([1, 3, 2, 4])
    """
    xp = namespace(array)
    check_choice("order", order, ORDERS)
    ndim = check_integer("ndim", ndim, minimum=1, maximum=3)
    array = check_array("array", array, xp, min_ndim=ndim + 1, axes="(..., c, *positions)", finite=False)
    batch = tuple(array.shape[: -ndim - 1])
    if order == "F":
        array = _reverse_positions(array, ndim, xp)
    return xp.reshape(array, (*batch, -1))


def unvec(vector: ArrayLike, shape: Sequence[int], *, order: Order = "C") -> AnyArray:
    """Undo `vec`: (..., c * prod(positions)) to (..., c, *positions).

    Parameters
    ----------
    vector : array of shape (..., c * prod(positions))
    shape : sequence of int
        ``(c, *positions)``.
    order : {"C", "F"}

    Returns
    -------
    array of shape (..., c, *positions)

    Examples
    --------
    >>> import numpy as np
    >>> from convla import unvec
    >>> unvec(np.array([1, 3, 2, 4]), (1, 2, 2), order="F")
    array([[[1, 2],
            [3, 4]]])
    """
    xp = namespace(vector)
    check_choice("order", order, ORDERS)
    shape = check_sizes("shape", shape)
    if not 2 <= len(shape) <= 4:
        raise ShapeError(f"shape must be (c, *positions) with 1 to 3 axes of positions, got {shape}")
    array = check_array("vector", vector, xp, min_ndim=1, axes=f"(..., {math.prod(shape)})", finite=False)
    if array.shape[-1] != math.prod(shape):
        raise ShapeError(f"vector must have last axis {math.prod(shape)} for shape {shape}, got {tuple(array.shape)}")
    batch = tuple(array.shape[:-1])
    if order == "C":
        return xp.reshape(array, (*batch, *shape))
    channels, *positions = shape
    return _reverse_positions(xp.reshape(array, (*batch, channels, *reversed(positions))), len(positions), xp)


def convolution_matrix(
    kernel: ArrayLike,
    geometry: ConvGeometry,
    *,
    order: Order = "C",
    format: MatrixFormat = "dense",  # noqa: A002
) -> Any:
    """Return the matrix M with ``vec(cross_correlate(x, kernel)) = M vec(x)`` for any number of channels.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in // groups, *kernel)
    geometry : ConvGeometry
        With this kernel shape.
    order : {"C", "F"}
        Row-major or column-major vec() of the positions; channels vary slowest in both, so that M has one block for
        each pair of channels.
    format : {"dense", "csr", "csc", "coo"}
        A SciPy (CuPy) sparse array, or a dense array of the kernel's library.

    Returns
    -------
    sparse array or array of shape ``geometry.shape``
        A sparse result stores every place that an entry of the kernel takes, zero or not.

    Raises
    ------
    TypeError
        If the format is sparse and the kernel is neither a NumPy nor a CuPy array.
    ShapeError
        If the kernel's shape is not the geometry's.
    ValueError
        If `order` or `format` is unknown.
    OverflowError
        If integers could leave their dtype where several taps meet in one entry.
    MemoryError
        If the dense matrix would not fit in memory.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Eqs. (2.1), (2.4).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvGeometry, convolution_matrix
    >>> kernel = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    >>> convolution_matrix(kernel, ConvGeometry(kernel.shape, (3,), padding="valid"), format="dense")
    array([[1., 2., 0.],
           [0., 1., 2.],
           [3., 4., 0.],
           [0., 3., 4.]])
    """
    kernel = check_kernel(kernel, namespace(kernel))
    if not isinstance(geometry, ConvGeometry):
        raise TypeError(f"geometry must be a ConvGeometry, got {describe(geometry)}")
    check_choice("order", order, ORDERS)
    check_choice("format", format, MATRIX_FORMATS)
    if tuple(kernel.shape) != geometry.kernel_shape:
        raise ShapeError(f"kernel must have the geometry's shape {geometry.kernel_shape}, got {tuple(kernel.shape)}")
    return unchecked_matrix(kernel, geometry, order, format)


def unchecked_matrix(kernel: Array, geometry: ConvGeometry, order: Order, format: str) -> Any:  # noqa: A002
    """Do what `convolution_matrix` does, for arguments that fit each other."""
    if geometry.largest_entry_count > 1:
        check_integer_sums("kernel", kernel, geometry.largest_entry_count)
    if format == "dense":
        return _dense(kernel, geometry, order)
    csr = _csr(kernel, geometry, order)
    return csr if format == "csr" else csr.asformat(format)


def _plane_matrix(
    kernel: ArrayLike,
    image_shape: Sequence[int],
    padding: Padding,
    boundary: Any,
    order: Order,
    format: Any,  # noqa: A002
) -> Any:
    kernel = check_array("kernel", kernel, namespace(kernel), ndim=2, axes="(k, l)")[None, None, ...]
    geometry = ConvGeometry(tuple(kernel.shape), image_shape, padding=padding, boundary=boundary)
    return convolution_matrix(kernel, geometry, order=order, format=format)


def _csr(kernel: Array, geometry: ConvGeometry, order: Order) -> Any:
    """Fill the three arrays of the CSR form: one output channel's pattern, repeated for all."""
    xp = namespace(kernel)
    sparse = sparse_library(kernel)
    out, inner = geometry.kernel_shape[:2]
    pixels = math.prod(geometry.image_shape)
    taps = math.prod(geometry.kernel_size)
    # The taps in the order of vec() put the columns of each row in order, for the zero boundary.
    tap_order = np.arange(taps).reshape(geometry.kernel_size).reshape(-1, order=order)
    positions = np.ascontiguousarray(geometry.position_map(order)[:, tap_order])
    inside = positions >= 0
    counts = inner * np.count_nonzero(inside, axis=1)
    entries = out * int(counts.sum())
    index_dtype = np.int32 if max(entries, *geometry.shape) <= np.iinfo(np.int32).max else np.int64
    # One output channel's entries stand row by row as (position, input channel, tap), without those outside.
    shape = (len(positions), inner, taps)
    stored = np.broadcast_to(inside[:, None, :], shape)
    first: Any = pixels * np.arange(inner, dtype=index_dtype)[:, None]
    columns = (first + positions.astype(index_dtype, copy=False)[:, None, :])[stored]
    group = np.arange(out) // (out // geometry.groups)
    indices = np.add.outer((group * inner * pixels).astype(index_dtype), columns)
    starts = np.zeros(geometry.shape[0] + 1, dtype=index_dtype)
    np.cumsum(np.tile(counts, out), out=starts[1:])
    weights = xp.reshape(kernel, (out, inner, taps))[:, :, tap_order]
    mask = on_device_of(stored, kernel, xp)
    data = xp.concat([xp.broadcast_to(weights[c, ...], shape)[mask] for c in range(out)])
    matrix = sparse.csr_array if is_numpy(kernel) else sparse.csr_matrix
    csr = matrix(
        (data, on_device_of(indices.reshape(-1), kernel, xp), on_device_of(starts, kernel, xp)), shape=geometry.shape
    )
    if geometry.boundary != "zero":
        csr.sum_duplicates()  # taps that wrap around or mirror may meet, and their columns are not in order
    return csr


def _dense(kernel: Array, geometry: ConvGeometry, order: Order) -> Array:
    xp = namespace(kernel)
    check_room(geometry.shape, kernel)
    if not (is_numpy(kernel) or is_cupy(kernel)):
        # Writing to computed places is not in the array-API standard: apply the map to the identity.
        unit = xp.eye(geometry.shape[1], dtype=kernel.dtype, device=device_of(kernel))
        features = correlate(unvec(unit, geometry.domain_shape, order=order), kernel, geometry)
        return xp.matrix_transpose(vec(features, geometry.ndim, order=order))
    out, inner = geometry.kernel_shape[:2]
    rows, columns = geometry.shape
    positions = geometry.position_map(order)
    weights = xp.reshape(kernel, (out, 1, inner, -1))
    matrix = xp.zeros(rows * columns, dtype=kernel.dtype)
    # Flat places, by (output channel, output position, input channel): the order in which they lie in memory.
    group = np.arange(out) // (out // geometry.groups)
    channel = (group[:, None] * inner + np.arange(inner)) * math.prod(geometry.image_shape)
    corner = (np.arange(out) * len(positions) * columns)[:, None, None] + channel[:, None, :]
    meeting = positions >= 0
    for tap in np.flatnonzero(meeting.any(axis=0)).tolist():  # of a long kernel on a small image few
        outputs = np.flatnonzero(meeting[:, tap])
        places = on_device_of(corner + (outputs * columns + positions[outputs, tap])[:, None], kernel, xp)
        if geometry.boundary == "zero":
            matrix[places] = weights[..., tap]
        else:
            matrix[places] += weights[..., tap]  # no place twice: each row is met once for each tap
    return xp.reshape(matrix, geometry.shape)


def check_room(shape: tuple[int, ...], like: Array) -> None:
    """Raise MemoryError unless a dense array of that shape, of the dtype and on the device of `like`, has room."""
    itemsize = like.dtype.itemsize if hasattr(like.dtype, "itemsize") else 8
    size = math.prod(shape) * itemsize
    available = available_memory(like)
    if available is not None and size > available:
        raise MemoryError(
            f"the dense matrix of shape {shape} takes {size / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are free: "
            "take a sparse format ('csr', 'csc', 'coo'), the matrix-free ConvOperator, or a few of its singular values"
        )


def _reverse_positions(array: Array, ndim: int, xp: Namespace) -> Array:
    first = array.ndim - ndim
    return xp.permute_dims(array, (*range(first), *reversed(range(first, array.ndim))))
