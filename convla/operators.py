"""`ConvOperator`: the convolution as a linear map that is applied, transposed and solved with, but not written out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

from convla._array import all_finite, copy_of, is_exact, is_numpy, namespace
from convla._checks import check_integer_range, check_integer_sums, check_kernel, check_signal, match_dtypes
from convla._dispatch import ENGINES, prepared
from convla._validate import check_array, check_choice
from convla._windows import correlate, correlate_image_adjoint, correlate_kernel_adjoint
from convla.errors import ShapeError
from convla.geometry import ORDERS, ConvGeometry
from convla.linear_map import LinearMap, Transpose
from convla.toeplitz import SPARSE_FORMATS, Order, unchecked_matrix
from convla.transposed import transposed_geometry
from convla.typing import AnyArray, Array, ArrayLike, Boundary, Engine, Padding

__all__ = ["ConvOperator", "TransposedConvOperator"]


@final
class ConvOperator(LinearMap):
    """The linear map of a convolutional layer, matrix-free.

    Parameters
    ----------
    kernel : array of shape (c_out, c_in // groups, *kernel)
        float32, float64, integers, or a NumPy object array of exact numbers; one to three kernel axes.
    image_shape : sequence of int, or ConvGeometry
        The sizes of the image without its channels; or all of the setting, with the kernel's shape.
    padding, stride, dilation, groups, boundary
        See `ConvGeometry`; not to be given beside one.
    order : {"C", "F"}
        The vec() that products with vectors, `to_dense` and `to_sparse` use: row-major, or column-major as in the
        paper of Guo and Ye. Channels vary slowest in both.
    engine : Engine
        Which kernels run the maps, see `convla.typing.Engine`; resolved here, once. "auto" takes transforms ("fft") for
        many taps, whose error is small next to the norm of the result; "direct" sums of products, whose error is
        bounded for each entry.

    Attributes
    ----------
    kernel : array
        A copy of the argument; read-only where the library can say so.
    geometry : ConvGeometry
    order, engine : str

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is not of the kind above, or the arguments do not fit each other.
    EngineError
        If the engine does not take this kernel.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Eqs. (1.2), (2.4).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> operator = ConvOperator(np.array([[[1.0, 2.0, 3.0]]]), (4,))
    >>> operator.shape
    (4, 4)
    >>> operator @ np.array([1.0, 0.0, 0.0, 0.0])
    array([2., 1., 0., 0.])
    >>> operator.T @ np.array([1.0, 0.0, 0.0, 0.0])
    array([2., 3., 0., 0.])
    >>> operator.to_dense()
    array([[2., 3., 0., 0.],
           [1., 2., 3., 0.],
           [0., 1., 2., 3.],
           [0., 0., 1., 2.]])
    """

    def __init__(
        self,
        kernel: ArrayLike,
        image_shape: Sequence[int] | ConvGeometry,
        *,
        padding: Padding = "same",
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        boundary: Boundary = "zero",
        order: Order = "C",
        engine: Engine = "auto",
    ) -> None:
        # A copy: what was checked stays as it was, whatever becomes of the caller's array.
        self.kernel = _settled(copy_of(check_kernel(kernel, namespace(kernel)), namespace(kernel)))
        match_dtypes("kernel", self.kernel, "kernel", self.kernel, namespace(self.kernel))
        shape = tuple(self.kernel.shape)
        if isinstance(image_shape, ConvGeometry):
            if (padding, stride, dilation, groups, boundary) != ("same", 1, 1, 1, "zero"):
                raise TypeError("padding, stride, dilation, groups and boundary are the geometry's: geometry.replace()")
            if shape != image_shape.kernel_shape:
                wanted = image_shape.kernel_shape
                raise ShapeError(f"kernel must have the geometry's kernel_shape {wanted}, got {shape}")
            self.geometry = image_shape
        else:
            self.geometry = ConvGeometry(
                shape,
                image_shape,
                padding=padding,
                stride=stride,
                dilation=dilation,
                groups=groups,
                boundary=boundary,
            )
        check_choice("order", order, ORDERS)
        self.order = order
        plain = type(self.kernel) is np.ndarray and self.kernel.dtype.kind == "f"
        self._numpy_float = self.kernel.dtype if plain else None
        self.engine = engine
        found = self.kernel, self.kernel, self.geometry
        self._correlate: Callable[..., Array] = correlate.resolve(*found, engine=engine)
        self._image_adjoint: Callable[..., Array] = correlate_image_adjoint.resolve(*found, engine=engine)
        self._kernel_adjoint: Callable[..., Array] = correlate_kernel_adjoint.resolve(*found, engine=engine)
        self._prepare()

    @staticmethod
    def transposed(
        kernel: ArrayLike,
        image_shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        order: Order = "C",
        engine: Engine = "auto",
    ) -> TransposedConvOperator:
        """Return a transposed convolution as PyTorch's ConvTranspose1d to 3d say it: an upsampling layer.

        Parameters
        ----------
        kernel : array of shape (c_in, c_out // groups, *kernel)
            Of the channels that go in and come out of the transposed convolution.
        image_shape : sequence of int
            The sizes of its argument, without channels.
        stride, dilation : int or sequence of int
            As for `ConvGeometry`.
        padding : int or sequence of int
            How many positions are taken off both ends of each axis of the output.
        output_padding : int or sequence of int
            How many are added at the far end of each axis; less than the stride or the dilation.
        groups, order, engine
            See `ConvOperator`.

        Returns
        -------
        TransposedConvOperator
            The transpose of the `ConvOperator` with this kernel, which takes images of the size that comes out here.

        Raises
        ------
        TypeError, ValueError, ShapeError, EngineError
            As the constructor; `ShapeError` also where nothing is left of the output.

        Examples
        --------
        >>> import numpy as np
        >>> from convla import ConvOperator
        >>> upsampling = ConvOperator.transposed(np.array([[[1.0, 2.0, 1.0]]]), (3,), stride=2, padding=1)
        >>> upsampling.apply(np.array([[1.0, 0.0, 1.0]]))
        array([[2., 1., 0., 1., 2.]])
        """
        array = check_kernel(kernel, namespace(kernel))
        geometry = transposed_geometry(
            tuple(array.shape),
            image_shape,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            dilation=dilation,
            groups=groups,
        )
        return ConvOperator(array, geometry, order=order, engine=engine).T

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"<{rows}x{columns} ConvOperator of {self.dtype}, {self.geometry}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # The resolved kernels stay behind: another process may have other engines.
        return _rebuild, (self.kernel, self.geometry, self.order, self.engine)

    def __abs__(self) -> ConvOperator:
        """Return the operator of the kernel's moduli, which bounds the entries of M: the factor of rounding bounds."""
        xp = namespace(self.kernel)
        check_integer_sums("kernel", self.kernel, 1)  # the modulus of the least integer is none
        return self.with_kernel(abs(self.kernel) if self.dtype == object else xp.abs(self.kernel))

    def with_kernel(self, kernel: ArrayLike) -> ConvOperator:
        """Return the operator of another kernel in the same setting: what a descent asks for at every step.

        Parameters
        ----------
        kernel : array of shape (c_out, c_in // groups, *kernel)
            Of any size that fits; padding, stride, dilation, groups, boundary, order and engine are kept.

        Returns
        -------
        ConvOperator

        Raises
        ------
        TypeError, ShapeError, ValueError, EngineError
            As the constructor.

        Examples
        --------
        >>> import numpy as np
        >>> from convla import ConvOperator
        >>> operator = ConvOperator(np.array([[[1.0, 2.0]]]), (3,), padding="valid")
        >>> operator.with_kernel(np.array([[[0.0, 1.0]]])).to_dense()
        array([[0., 1., 0.],
               [0., 0., 1.]])
        """
        xp = namespace(kernel)
        checked = check_kernel(kernel, xp)
        mine = self.kernel
        if (type(checked), checked.dtype, tuple(checked.shape)) != (type(mine), mine.dtype, tuple(mine.shape)):
            return _rebuild(checked, self.geometry, self.order, self.engine)
        return self._with_kernels([copy_of(checked, xp)])

    def with_engine(self, engine: Engine) -> ConvOperator:
        """Return the same operator with its maps run by another engine; see the constructor."""
        return self if engine == self.engine else _rebuild(self.kernel, self.geometry, self.order, engine)

    def _prepare(self) -> None:
        self._widened: ConvOperator | None = None
        # What the engine has made of the kernel for its own use, once for all products.
        maps = (self._correlate, self._image_adjoint)
        self._for_image, self._for_features = prepared(maps, self.kernel, self.geometry)

    def astype(self, dtype: Any) -> ConvOperator:
        """Return the operator of the kernel in another dtype, in the same setting.

        That of a NumPy array in float64 is made once: several read off in it what they have found in float32.
        """
        xp = namespace(self.kernel)
        if dtype == self.kernel.dtype:
            return self
        if not is_numpy(self.kernel) or dtype != np.float64:
            return self.with_kernel(xp.astype(self.kernel, dtype))
        if self._widened is None:
            self._widened = self.with_kernel(self.kernel.astype(dtype))
        return self._widened

    @property
    def like(self) -> Array:
        """The kernel: arguments have its library, device and dtype."""
        return self.kernel

    # A step of a descent asks for these more often than it multiplies; `_with_kernels` hands them on.

    @functools.cached_property
    def domain_shape(self) -> tuple[int, ...]:
        """The shape of one image: (c_in, *image)."""
        return self.geometry.domain_shape

    @functools.cached_property
    def range_shape(self) -> tuple[int, ...]:
        """The shape of one image's features: (c_out, *output)."""
        return self.geometry.range_shape

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix: (entries of a value, entries of an argument)."""
        return self.geometry.shape

    @property
    def T(self) -> TransposedConvOperator:
        """The transpose of M, whose `apply` is this operator's `adjoint`."""
        return TransposedConvOperator(self)

    def apply(self, image: ArrayLike) -> AnyArray:
        """Cross-correlate one image or a batch with the kernel.

        Parameters
        ----------
        image : array of shape (..., c_in, *image)
            Of the kernel's library and dtype.

        Returns
        -------
        array of shape (..., c_out, *output)

        Raises
        ------
        TypeError, ShapeError, ValueError, OverflowError
            As `cross_correlate`.

        Examples
        --------
        >>> import numpy as np
        >>> from convla import ConvOperator
        >>> ConvOperator(np.array([[[1.0, 1.0]]]), (3,), padding="valid").apply(np.array([[1.0, 2.0, 4.0]]))
        array([[3., 6.]])
        """
        image = self._checked("image", image, self.geometry.domain_shape)
        if self._numpy_float is None:
            check_integer_range(image, self.kernel, self.geometry.largest_row_count)
        return self._apply(image)

    def adjoint(self, features: ArrayLike) -> AnyArray:
        """Apply the transpose of `apply` to one array of features or a batch.

        Parameters
        ----------
        features : array of shape (..., c_out, *output)
            Of the kernel's library and dtype.

        Returns
        -------
        array of shape (..., c_in, *image)

        Raises
        ------
        TypeError, ShapeError, ValueError, OverflowError
            As `image_adjoint`.

        Examples
        --------
        >>> import numpy as np
        >>> from convla import ConvOperator
        >>> ConvOperator(np.array([[[1.0, 1.0]]]), (3,), padding="valid").adjoint(np.array([[3.0, 6.0]]))
        array([[3., 9., 6.]])
        """
        features = self._checked("features", features, self.geometry.range_shape)
        if self._numpy_float is None and is_exact(features):  # the count takes longer than many a convolution
            check_integer_range(features, self.kernel, self.geometry.largest_column_count)
        return self._adjoint(features)

    def kernel_adjoint(self, features: ArrayLike, image: ArrayLike) -> AnyArray:
        """Apply the transpose of ``kernel -> apply(image)`` to features, summed over a batch.

        Parameters
        ----------
        features : array of shape (..., c_out, *output)
        image : array of shape (..., c_in, *image)
            With the same leading axes.

        Returns
        -------
        array of shape (c_out, c_in // groups, *kernel)

        Raises
        ------
        TypeError, ShapeError, ValueError, OverflowError
            As `convla.kernel_adjoint`.

        Examples
        --------
        >>> import numpy as np
        >>> from convla import ConvOperator
        >>> operator = ConvOperator(np.array([[[1.0, 1.0]]]), (3,), padding="valid")
        >>> operator.kernel_adjoint(np.array([[1.0, 0.0]]), np.array([[5.0, 6.0, 7.0]]))
        array([[[5., 6.]]])
        """
        geometry = self.geometry
        features = self._checked("features", features, geometry.range_shape)
        image = self._checked("image", image, geometry.domain_shape)
        batch = tuple(image.shape[: -geometry.ndim - 1])
        if tuple(features.shape[: -geometry.ndim - 1]) != batch:
            raise ShapeError(
                "features and image must have the same leading axes, got shapes "
                f"{tuple(features.shape)} and {tuple(image.shape)}"
            )
        check_integer_range(features, image, math.prod(batch) * math.prod(geometry.output_shape))
        return self._kernel_adjoint(features, image, geometry)

    @property
    def kernels(self) -> tuple[Array, ...]:
        """The kernel, as the only one."""
        return (self.kernel,)

    def kernel_gradients(self, u: ArrayLike, v: ArrayLike) -> tuple[AnyArray, ...]:
        """Return the gradient of ``<u, A v>`` with respect to the kernel: `kernel_adjoint`."""
        return (self.kernel_adjoint(u, v),)

    def with_kernels(self, kernels: Sequence[ArrayLike]) -> ConvOperator:
        """Return the operator of another kernel, the only one of `kernels`: `with_kernel`."""
        if len(kernels) != 1:
            raise ValueError(f"kernels must hold 1 array, got {len(kernels)}")
        return self.with_kernel(kernels[0])

    # Unchecked doors, for arrays that the library has made itself, of this library, dtype, shape and finite.

    def _apply(self, image: Array) -> Array:
        return self._correlate(image, self._for_image, self.geometry)

    def _adjoint(self, features: Array) -> Array:
        return self._image_adjoint(features, self._for_features, self.geometry)

    def _kernel_gradients(self, u: Array, v: Array) -> tuple[Array, ...]:
        return (self._kernel_adjoint(u, v, self.geometry),)

    @property
    def _sums_directly(self) -> bool:
        """Whether the engine's products are direct sums, whose rounding errors are bounded for each entry."""
        engine = correlate.choose(self.kernel, self.kernel, self.geometry, engine=self.engine)
        return engine == "reference" or ENGINES[engine].direct

    def _with_kernels(self, kernels: Sequence[Array]) -> ConvOperator:
        # What has been settled for this kernel holds for one like it; to find it again takes longer than small layers.
        operator = object.__new__(ConvOperator)
        operator.__dict__.update(self.__dict__)
        operator.kernel = _settled(kernels[0])
        operator._prepare()
        return operator

    def to_dense(self) -> AnyArray:
        """Return M as an array of the kernel's library; see `convolution_matrix`."""
        return unchecked_matrix(self.kernel, self.geometry, self.order, "dense")

    def to_sparse(self, format: str = "csr") -> Any:  # noqa: A002
        """Return M as a SciPy (CuPy) sparse array in format "csr", "csc" or "coo"; see `convolution_matrix`."""
        check_choice("format", format, SPARSE_FORMATS)
        return unchecked_matrix(self.kernel, self.geometry, self.order, format)

    def _checked(self, name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
        # A few quick questions settle the usual case: the full checks would cost more than a small convolution.
        if (
            type(value) is np.ndarray
            and value.dtype is self._numpy_float
            and value.shape[-len(shape) :] == shape
            and value.size
            and all_finite(value)
        ):
            return value
        xp = namespace(value, self.kernel)
        array = check_array(name, value, xp, min_ndim=len(shape), axes=f"(..., {', '.join(map(str, shape))})")
        check_signal(name, array, shape, self.geometry)
        array, kernel = match_dtypes(name, array, "kernel", self.kernel, xp)
        if kernel.dtype != self.dtype:
            raise TypeError(f"{name} must have the kernel's dtype {self.dtype}, got {array.dtype}")
        return array


@final
class TransposedConvOperator(Transpose):
    """The transpose of a `ConvOperator`: a transposed convolution, as in `ConvOperator.transposed`.

    Attributes
    ----------
    kernel : array of shape (c_in, c_out // groups, *kernel)
        Of the channels of its arguments and values; the same array as that of its transpose `T`.
    geometry : ConvGeometry
        Of its transpose.
    """

    def __init__(self, operator: ConvOperator) -> None:
        super().__init__(operator)
        self._operator = operator

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"<{rows}x{columns} TransposedConvOperator of {self.dtype}, transpose of {self.geometry}>"

    @property
    def T(self) -> ConvOperator:
        """The convolution that this is the transpose of."""
        return self._operator

    @property
    def kernel(self) -> Array:
        """The kernel of the map that this is the transpose of."""
        return self._operator.kernel

    @property
    def geometry(self) -> ConvGeometry:
        """The geometry of the map that this is the transpose of."""
        return self._operator.geometry

    def with_kernel(self, kernel: ArrayLike) -> TransposedConvOperator:
        """Return the transposed convolution with another kernel in the same setting; see `ConvOperator.with_kernel`."""
        return self._operator.with_kernel(kernel).T


def _settled(kernel: Array) -> Array:
    """Return an array that stays as it is from now on: what engines make of a kernel must not grow old."""
    if is_numpy(kernel):
        kernel.flags.writeable = False
    return kernel


def _rebuild(kernel: Array, geometry: ConvGeometry, order: Order, engine: Engine) -> ConvOperator:
    """Return the operator of a kernel in the setting of `geometry`, whose kernel may have another size."""
    geometry = geometry.replace(kernel_shape=tuple(kernel.shape))
    return ConvOperator(kernel, geometry, order=order, engine=engine)
