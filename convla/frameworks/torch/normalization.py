"""A layer whose norm stays below a limit: its weight divided by the singular value of the layer, not of the kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convla._array import namespace, row_dots
from convla._convergence import unheard
from convla._threads import blas_on_one_thread
from convla._validate import check_real
from convla.frameworks.torch._closed_form import Known, closed_form, full_precision
from convla.frameworks.torch.layer_maps import LayerMap, layer_map
from convla.operators import ConvOperator
from convla.projections.scaling import scaled_below
from convla.spectra.batch import Batch
from convla.spectra.krylov import KrylovSpace
from convla.spectra.scaling import scaled_to_unit
from convla.spectra.values import singular_values
from convla.typing import Array, NumPyArray

__all__ = ["SpectralNorm", "spectral_norm"]

Layer = Any

_RTOL = 0.01  # of the residual; the norm's error is of its square
_FIRST_MATVECS, _MATVECS = 200, 8  # of a pass; a later one goes on from where the last one stopped
_SMALL = 64  # rows or columns of a matrix that is decomposed each time
_LEAST, _MOST = 2.0**-16, 2.0**4  # of the largest entries of kernels whose norms' fourth powers are in float32's range
_NOISE = 0.05  # of the vector that it starts from: what another vector that overtakes it is found by


def spectral_norm(layer: Layer, image_shape: Sequence[int], *, maximum: float = 1.0) -> Layer:
    """Keep the largest singular value of a layer below a limit, by a parametrization of its weight.

    Parameters
    ----------
    layer : torch.nn.Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d or Linear
        Grouped, strided and dilated ones too, with any padding mode.
    image_shape : sequence of int
        The sizes of the layer's images, without batch and channels, as `image_shapes` finds them; () for a linear
        layer. With zeros around the image a larger one has a larger norm: take the largest that will occur.
    maximum : float, default 1
        Positive. A weight below it is left as it is.

    Returns
    -------
    layer
        The one passed in. ``torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")`` leaves the weight
        that it has then, of the mode that it is in.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is wrong in type or value, or the layer's weight has no shape yet.

    Notes
    -----
    In evaluation mode, and in what ``state_dict`` saves, ``singular_value_bounds(...).upper <= maximum`` holds for the
    layer's weight as its dtype holds it. In training mode the norm is found to about 1e-3, from the vector of the last
    pass, and not proved.

    ``torch.nn.utils.parametrizations.spectral_norm`` divides by the norm of the kernel as a matrix of its filters,
    which says little of the layer's.

    The gradient goes through the norm, by its singular vectors; a second derivative in the weight is an error. Buffers
    remember the factor, the vector and the number of passes; they are saved, copied and moved with the layer. A layer
    of half precision is worked on in float32 and rounded back, and autocasting leaves this alone. torch.compile breaks
    its graph at the weight.

    References
    ----------
    T. Miyato, T. Kataoka, M. Koyama and Y. Yoshida, Spectral Normalization for Generative Adversarial Networks, ICLR
    2018, for the parametrization, of the kernel's norm.

    Examples
    --------
    >>> import torch
    >>> import convla
    >>> from convla.frameworks.torch import spectral_norm
    >>> _ = torch.manual_seed(0)
    >>> layer = spectral_norm(torch.nn.Conv2d(3, 8, 3, padding=1), (16, 16), maximum=0.5).eval()
    >>> operator = convla.ConvOperator(layer.weight.detach(), (16, 16))
    >>> convla.singular_value_bounds(operator).upper <= 0.5
    True
    """
    maximum = check_real("maximum", maximum, positive=True)
    where = layer_map(layer, image_shape)
    layer.register_state_dict_pre_hook(_prove_before_saving)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(where, maximum, layer.weight))
    return layer


class SpectralNorm(nn.Module):  # type: ignore[misc]
    """The parametrization that `spectral_norm` registers.

    Parameters
    ----------
    layer_map : LayerMap
    maximum : float
    weight : tensor
        Whose shape, dtype and device are taken.

    Attributes
    ----------
    scale : tensor of shape ()
        Buffer: what the weight was last multiplied by.
    vector : tensor of shape (entries of an image,)
        Buffer: the singular vector that was last found; zeros before.
    updates : tensor of shape ()
        Buffer: how often it was.
    """

    def __init__(self, layer_map: LayerMap, maximum: float, weight: Tensor) -> None:
        super().__init__()
        self.layer_map = layer_map
        self.maximum = maximum
        weight = weight.detach()
        operator = layer_map.operator(weight)
        self.register_buffer("scale", weight.new_ones(()))
        kernel: Tensor = operator.kernel
        self.register_buffer("vector", kernel.new_zeros(operator.shape[1]))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=weight.device))
        # What the factor was proved of; a file's is not believed.
        self.register_buffer("_proved", torch.zeros_like(weight), persistent=False)
        self._proof: tuple[Any, float] | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, scaled down if need be."""
        with torch.no_grad(), full_precision(weight):
            leading = (self.estimate if self.training else self.prove)(weight)
        if float(self.scale) == 1.0:
            return weight
        # 1, with the derivative of the logarithm of the norm: the norm itself can be out of the dtype's range.
        wide = weight if weight.dtype == torch.float64 else weight.float()  # in half precision the sums would overflow
        one = closed_form([wide], _one, lambda detached: self._one_and_gradient(detached, leading))
        return (wide * (self.scale.to(wide.dtype, copy=True) / one)).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the weight to start from, when one is assigned: itself."""
        return weight

    def estimate(self, weight: Tensor) -> _Leading | None:
        """Find the factor that brings the layer's norm to the maximum, to about 1e-3."""
        leading = self._follow(weight)
        self.scale.fill_(1.0 if leading is None else min(1.0, self.maximum / leading.norm))
        self._proof = None
        return leading

    def prove(self, weight: Tensor) -> _Leading | None:
        """Find the factor by which the layer's norm is proved to be at most the maximum, unless it is known."""
        weight = weight.detach()
        proof = weight.dtype, float(self.scale)
        if proof == self._proof and torch.equal(weight, self._proved):
            return None
        operator = self.layer_map.operator(weight)

        def scaled(factor: float) -> ConvOperator:
            return self.layer_map.operator(weight * weight.new_tensor(factor))

        leading = self._follow(weight)
        with blas_on_one_thread():
            self.scale.fill_(scaled_below(operator, self.maximum, scale=scaled).factor)
        self._proved.copy_(weight)
        self._proof = weight.dtype, float(self.scale)
        return leading

    @blas_on_one_thread()
    def _follow(self, weight: Tensor) -> _Leading | None:
        """Find the layer's norm from the last vector and some noise, and keep the vector; None for zero."""
        found = self._scaled(weight)
        if found is None:
            return None
        scaled, exponent = found
        count = int(self.updates)
        vector = self.vector.to(self.layer_map.kernel(weight).dtype)
        draws = np.random.default_rng(count).standard_normal(vector.numel())
        noise = vector.new_tensor(draws / math.sqrt(draws.size))
        start = vector + (_NOISE if count else 1.0) * noise
        most = _MATVECS if count else _FIRST_MATVECS
        leading, image = _leading_triplet(scaled, _like(start, scaled.kernel), most)
        self.vector.copy_(torch.as_tensor(leading).reshape(-1))
        self.updates.add_(1)
        return _Leading(scaled, exponent, leading, image)

    def _scaled(self, weight: Tensor) -> tuple[ConvOperator, int] | None:
        """Return the layer times 2^-e, so that fourth powers of its norm are in range, and e; None where it is zero."""
        on_host = weight.device.type == "cpu"
        operator = self.layer_map.host_operator(weight) if on_host else self.layer_map.operator(weight)
        xp, kernel = namespace(operator.kernel), operator.kernel
        largest = max(float(xp.max(kernel)), -float(xp.min(kernel)))
        if _LEAST <= largest <= _MOST and all(map(all, operator.geometry.live_taps)):
            return operator, 0
        operator, exponent = scaled_to_unit(operator)
        return (operator, exponent) if bool(xp.any(operator.kernel != 0)) else None

    @blas_on_one_thread()
    def _one_and_gradient(self, weight: Tensor, leading: _Leading | None) -> Known:
        if leading is None:
            found = self._scaled(weight)
            assert found is not None  # zero needs no factor
            operator, exponent = found
            vector = _like(self.vector.to(weight), operator.kernel).reshape(1, *operator.domain_shape)
            leading = _Leading(operator, exponent, vector, operator._apply(vector))
        square = row_dots(leading.image.reshape(-1), leading.image.reshape(-1), namespace(leading.image))
        (gradient,) = leading.operator._kernel_gradients(leading.image / square, leading.vector)
        gradient = torch.as_tensor(gradient)
        if leading.exponent:
            half = leading.exponent // 2  # in two factors: 2^-e itself may be beyond the dtype's range
            gradient = gradient * 2.0**-half * 2.0 ** -(leading.exponent - half)
        return Known(_one(weight), (gradient.reshape(weight.shape),))

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"maximum={self.maximum}, {self.layer_map}"


class _Leading(NamedTuple):
    """The singular vector that a layer's norm was found by, and its image under the layer times 2^-exponent."""

    operator: ConvOperator
    exponent: int
    vector: Tensor | NumPyArray
    image: Tensor | NumPyArray

    @property
    def norm(self) -> float:
        """Of the layer."""
        with np.errstate(over="ignore"):
            return float(np.ldexp(float(namespace(self.image).linalg.vector_norm(self.image)), self.exponent))


def _leading_triplet(
    operator: ConvOperator, start: Tensor | NumPyArray, most: int
) -> tuple[Tensor | NumPyArray, Tensor | NumPyArray]:
    """Return a unit image (1, c_in, *image) that is stretched by about the norm, and what becomes of it.

    Products with the operator and its transpose are at most so many. Of groups each is searched by itself.
    """
    if min(operator.shape) <= _SMALL or operator.geometry.groups > 1:
        with unheard():  # the next pass goes on
            found = singular_values(
                operator,
                1,
                rtol=_RTOL,
                method="auto" if min(operator.shape) <= _SMALL else "lanczos",
                start=start.reshape(1, *operator.domain_shape),
                max_matvecs=most,
            )
        assert found.right is not None  # with k = 1 there are vectors
        return found.right, operator._apply(found.right)
    space = KrylovSpace(Batch(operator, 1), start.reshape(1, 1, -1) / namespace(start).linalg.vector_norm(start))
    while True:
        squares, ritz = np.linalg.eigh(space.gram)
        settled = space.coupling * abs(float(ritz[-1, -1])) <= _RTOL * float(squares[-1])
        if settled or 2 * space.rows >= most or not space.extend():
            break
    block, xp = space.block(ritz[:, -1:]), namespace(start)
    images = xp.reshape(block.images, (1, *operator.range_shape))
    return xp.reshape(block.vectors, (1, *operator.domain_shape)), images


def _like(tensor: Tensor, kernel: Array) -> Tensor | NumPyArray:
    """Return a tensor as an array of the library of a kernel."""
    return tensor.numpy() if isinstance(kernel, np.ndarray) else tensor


def _one(weight: Tensor) -> Tensor:
    return weight.new_ones(())


def _prove_before_saving(layer: Layer, prefix: str, keep_vars: bool) -> None:  # noqa: ARG001
    if not parametrize.is_parametrized(layer, "weight"):
        return
    with torch.no_grad():
        weight = layer.parametrizations.weight.original
        for step in layer.parametrizations.weight:
            if isinstance(step, SpectralNorm):
                with full_precision(weight):
                    step.prove(weight)
                weight = weight * step.scale
            else:
                weight = step(weight)
