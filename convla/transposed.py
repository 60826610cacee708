"""The geometry behind a transposed convolution, in PyTorch's parameters."""

from __future__ import annotations

from collections.abc import Sequence

from convla._validate import check_per_axis, check_sizes
from convla.errors import ShapeError
from convla.geometry import ConvGeometry

__all__ = ["transposed_geometry"]


def transposed_geometry(
    kernel_shape: Sequence[int],
    image_shape: Sequence[int],
    *,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> ConvGeometry:
    """Return the geometry whose transpose is a transposed convolution, in PyTorch's parameters.

    Parameters
    ----------
    kernel_shape : sequence of int
        ``(c_in, c_out // groups, *kernel)``.
    image_shape : sequence of int
        The sizes of the argument n; the image of the geometry has the sizes that come out.
    stride, padding, output_padding, dilation, groups
        See `ConvOperator.transposed`.

    Raises
    ------
    TypeError, ValueError, ShapeError
        As `ConvGeometry`.

    Examples
    --------
    >>> from convla.transposed import transposed_geometry
    >>> options = dict(stride=2, padding=1, output_padding=1, dilation=1, groups=1)
    >>> transposed_geometry((8, 4, 3, 3), (16, 16), **options).image_shape
    (32, 32)
    """
    kernel, image = check_sizes("kernel_shape", kernel_shape), check_sizes("image_shape", image_shape)
    ndim = len(kernel) - 2
    if len(image) != ndim:
        raise ShapeError(f"image_shape must have {ndim} axes for a kernel of shape {kernel}, got {image}")
    strides, dilations = check_per_axis("stride", stride, ndim), check_per_axis("dilation", dilation, ndim)
    cut = check_per_axis("padding", padding, ndim, minimum=0)
    added = check_per_axis("output_padding", output_padding, ndim, minimum=0)
    sizes, pads = [], []
    for axis, (n, k, s, d, p, more) in enumerate(zip(image, kernel[2:], strides, dilations, cut, added, strict=True)):
        if more >= max(s, d):
            raise ValueError(
                f"output_padding must be less than the stride or the dilation, got {more} along axis {axis} with "
                f"stride {s} and dilation {d}"
            )
        size = (n - 1) * s - 2 * p + (k - 1) * d + more + 1
        if size < 1:
            raise ShapeError(f"nothing is left along axis {axis} of the output: size {size} with padding {p}")
        sizes.append(size)
        # The convolution of an image of this size has n outputs, if need be with the far end cropped.
        pads.append((p, p if more < s else p - more))
    return ConvGeometry(kernel, sizes, padding=tuple(pads), stride=strides, dilation=dilations, groups=groups)
