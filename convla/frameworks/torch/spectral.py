"""The penalty R_alpha on a layer's singular values as a loss module, whose buffers follow the singular vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from convla._array import describe
from convla._threads import blas_on_one_thread
from convla.errors import ShapeError
from convla.frameworks.torch._closed_form import check_weight, closed_form
from convla.frameworks.torch.layers import (
    CONVOLUTIONS,
    check_network,
    convolutions,
    current_weight,
    image_shapes,
    weight_hook,
)
from convla.geometry import ConvGeometry
from convla.operators import ConvOperator
from convla.penalties._estimators import ESTIMATORS, EstimatorOptions
from convla.penalties.value import ActivePairs, gram_map, pair_gradient
from convla.spectra.tracking import DENSE_ENTRIES, BlockTracker
from convla.typing import Boundary, Padding

__all__ = ["NetworkSpectralPenalty", "SpectralPenalty"]

Tensor = Any
Layer = Any

BOUNDARIES: dict[str, Boundary] = {
    "zeros": "zero",
    "circular": "circular",
    "reflect": "reflect",
    "replicate": "replicate",
}
"""What a layer's `padding_mode` is called here."""


class SpectralPenalty(nn.Module):  # type: ignore[misc]
    """The penalty sigma_max(M^T M - alpha I) of a convolutional layer, as a function of its weight.

    Parameters
    ----------
    layer : torch.nn.Conv1d, Conv2d or Conv3d
        Whose stride, padding, dilation, groups and padding mode are read now. The layer itself is not kept.
    image_shape : sequence of int
        The sizes of the layer's images, without batch and channels; `image_shapes` finds them.
    alpha : float, default 1
        The wanted square of every singular value, positive.
    gram : {"input", "smaller"}
        Of ``M^T M``, as printed, or of the smaller of ``M^T M`` and ``M M^T``: of a layer with more inputs than outputs
        the first is at least alpha, and does nothing for the smallest singular value.
    tracker : {"block", "power", "exact"}
        How singular vectors are followed from one forward pass to the next: both ends of the spectrum, each by a block;
        two by the power method, as in the paper's Algorithm 2.1, which can lag behind or stay on the wrong vector; or
        the decomposition of the whole matrix each time, for at most 2**20 entries.
    block, block_steps : int, default 4 and 20
        Vectors at each end, and most steps of the block iteration in one pass; it stops at a residual of 1e-3
        ``sigma_max^2``.
    power_iterations : int, default 2
        Of the power method in one pass.
    cluster_rtol : float, optional
        How close to the leading eigenvalues others count as active, whose gradients are averaged; see
        `convla.penalty_gradient`.

    Attributes
    ----------
    largest, smallest : tensor of shape (block + 1, columns)
        Buffers: the vectors followed at either end of the spectrum, in each row one of every uncoupled part of the map
        (of each group, for one); fewer rows where no part has so many columns. The last row takes in random vectors.
        The lower end of a map with more columns than rows is known, and has none. With tracker "power" there is one
        block ``shifted`` instead, with "exact" none.
    largest_updates, smallest_updates : tensor of shape ()
        Buffers: in how many passes in training mode each was followed. At 0 the vectors are found from nothing when
        they are needed; the lower end is not while ``sigma_max^2`` is above ``2 alpha``, where it cannot count.

    largest_kernel, smallest_kernel : tensor of the weight's shape
        Buffers: the weight when each was last followed.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If an argument is wrong in type or value, the layer's weight has no shape yet, the image is too small for the
        layer, or the matrix too large for tracker "exact". The call: if the weight is none of that shape, of float32
        or float64, or holds NaN or infinity; if it has no gradient because the layer's ``torch.nn.utils.spectral_norm``
        or ``weight_norm`` has not computed it yet.

    Warns
    -----
    ConvergenceWarning
        If the first search for the vectors of a large matrix does not converge.

    Notes
    -----
    The vectors are buffers: they are saved and loaded with ``state_dict``, move with ``to``, and are all that a call
    remembers, so that a resumed training makes the same steps. In evaluation mode a call reads them and leaves them as
    they are. Where the weight has changed much since the last call, or was replaced, the vectors are found anew. What
    a call returns is an estimate, right to 1e-3 of ``sigma_max^2``; with "exact" it is exact.

    The result can be differentiated once, by the closed form of `convla.penalty_gradient`.

    References
    ----------
    P.-C. Guo and Q. Ye, On Regularization of Convolutional Kernels in Neural Networks, Theorem 2.2, Algorithm 2.1.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import SpectralPenalty
    >>> layer = torch.nn.Conv1d(2, 2, 1)
    >>> penalty = SpectralPenalty(layer, (1,))
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 2.0]])[:, :, None])
    >>> loss = penalty(layer.weight)
    >>> loss.backward()
    >>> loss.item(), layer.weight.grad[:, :, 0].round(decimals=4).tolist()
    (8.0, [[6.0, 0.0], [0.0, 0.0]])
    """

    def __init__(
        self,
        layer: Layer,
        image_shape: Sequence[int],
        *,
        alpha: float = 1.0,
        gram: str = "input",
        tracker: str = "block",
        block: int = 4,
        block_steps: int = 20,
        power_iterations: int = 2,
        cluster_rtol: float | None = None,
    ) -> None:
        super().__init__()
        self.options = EstimatorOptions(
            alpha=alpha,
            gram=gram,
            tracker=tracker,
            power_iterations=power_iterations,
            block=block,
            block_steps=block_steps,
            cluster_rtol=cluster_rtol,
        )
        if not isinstance(layer, CONVOLUTIONS):
            raise TypeError(f"layer must be a torch.nn.Conv1d, Conv2d or Conv3d, got {describe(layer)}")
        if isinstance(layer.weight, nn.parameter.UninitializedParameter):
            raise ValueError("layer has no weight yet: pass an input through it first")
        hooked = weight_hook(layer) is not None
        self._computed = hooked and any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        weight = layer.weight.detach()
        self.kernel_shape = tuple(weight.shape)
        self.setting: dict[str, Any] = {
            "image_shape": image_shape,
            "padding": _padding(layer),
            "stride": tuple(layer.stride),
            "dilation": tuple(layer.dilation),
            "groups": layer.groups,
            "boundary": BOUNDARIES[layer.padding_mode],
        }
        geometry = ConvGeometry(self.kernel_shape, **self.setting)
        self.setting["image_shape"] = geometry.image_shape
        rows, columns = geometry.shape
        if tracker == "exact" and rows * columns > DENSE_ENTRIES:
            raise ValueError(
                f"tracker 'exact' takes matrices of at most {DENSE_ENTRIES} entries, got {rows}x{columns}: use 'block'"
            )
        # Zeros of float32 or float64: the shapes say what a saved state must fit.
        factor = gram_map(self._operator(torch.zeros_like(weight, dtype=_wide(weight.dtype))), gram)
        for name, carried in ESTIMATORS[tracker](self.options).trackers(factor).items():
            self.register_buffer(name, weight.new_zeros(carried.carried_shape(factor), dtype=_wide(weight.dtype)))
            self.register_buffer(f"{name}_updates", weight.new_zeros((), dtype=torch.int64))
            if isinstance(carried, BlockTracker):
                self.register_buffer(f"{name}_kernel", torch.zeros_like(weight, dtype=_wide(weight.dtype)))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the penalty of a weight, a tensor of shape () and of the weight's dtype."""
        check_weight("weight", weight)
        if self._computed and torch.is_grad_enabled() and not weight.requires_grad:
            raise ValueError(
                "weight has no gradient: the layer's normalization computes it in its forward pass, so pass an input "
                "through the layer first, or take the parametrization of the same name"
            )
        if tuple(weight.shape) != self.kernel_shape:
            raise ShapeError(f"weight must have shape {self.kernel_shape}, got {tuple(weight.shape)}")

        def value(kernel: Tensor) -> Tensor:
            return kernel.new_tensor(self._estimate(self._operator(kernel)).value)

        def value_and_gradient(kernel: Tensor) -> tuple[Tensor, Tensor]:
            operator = self._operator(kernel)
            pairs = self._estimate(operator)
            return kernel.new_tensor(pairs.value), pair_gradient(operator, self.options.gram, pairs)

        return closed_form(weight, value, value_and_gradient)

    def reset(self) -> None:
        """Forget the vectors: the next call finds them from nothing."""
        for buffer in self.buffers():
            buffer.zero_()

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        settings = {"kernel_shape": self.kernel_shape, **self.setting, **vars(self.options)}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())

    def _operator(self, kernel: Tensor) -> ConvOperator:
        return ConvOperator(kernel, **self.setting)

    @blas_on_one_thread()
    def _estimate(self, operator: ConvOperator) -> ActivePairs:
        # Made afresh: whatever is remembered is in the buffers.
        estimator = ESTIMATORS[self.options.tracker](self.options)
        trackers = estimator.trackers(gram_map(operator, self.options.gram))
        for name, carried in trackers.items():
            updates = int(self.get_buffer(f"{name}_updates"))
            if updates:
                carried.vectors = self.get_buffer(name).to(operator.kernel, copy=True)
            if updates and isinstance(carried, BlockTracker):
                carried.kernel, carried.updates = self.get_buffer(f"{name}_kernel").to(operator.kernel), updates
        before = {name: carried.vectors for name, carried in trackers.items()}
        pairs = estimator.estimate(operator)
        for name, carried in trackers.items():
            if self.training and carried.vectors is not before[name]:
                self.get_buffer(name).copy_(carried.vectors)
                self.get_buffer(f"{name}_updates").add_(1)
                if isinstance(carried, BlockTracker):
                    self.get_buffer(f"{name}_kernel").copy_(carried.kernel)
        return pairs


class NetworkSpectralPenalty(nn.Module):  # type: ignore[misc]
    """The sum of the penalties of all convolutional layers of a network.

    Parameters
    ----------
    network : torch.nn.Module
        Its layers are those of `convolutions`. It is not kept.
    example : tensor
        An input of the network, which shows on what images its layers work; see `image_shapes`.
    **options
        Of `SpectralPenalty`, for all layers.

    Attributes
    ----------
    names : tuple of str
        The layers'.
    penalties : torch.nn.ModuleList
        One `SpectralPenalty` for each.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `SpectralPenalty` and `convolutions`; the message begins with the layer's name.

    Examples
    --------
    >>> import torch
    >>> from convla.frameworks.torch import NetworkSpectralPenalty
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3))
    >>> penalty = NetworkSpectralPenalty(network, torch.zeros(1, 1, 8, 8), gram="smaller")
    >>> penalty.names
    ('0', '2')
    >>> penalty(network).backward()
    """

    def __init__(self, network: Any, example: Tensor, **options: Any) -> None:
        super().__init__()
        layers = convolutions(network)
        shapes = image_shapes(network, example)
        self.names = tuple(shapes)
        penalties = []
        for name, shape in shapes.items():
            try:
                penalties.append(SpectralPenalty(layers[name], shape, **options))
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {name}: {error}") from error
        self.penalties = nn.ModuleList(penalties)

    def forward(self, network: Any) -> Tensor:
        """Return the sum over the layers of a network with layers of those names, a tensor of shape ()."""
        return torch.stack(list(self.layers(network).values())).sum()

    def layers(self, network: Any) -> dict[str, Tensor]:
        """Return the penalty of each layer by name."""
        check_network(network)
        layers = dict(network.named_modules())
        values = {}
        for name, penalty in zip(self.names, self.penalties, strict=True):
            if name not in layers:
                raise ValueError(f"network must have the layers {self.names}, got one without {name!r}")
            try:
                values[name] = penalty(current_weight(layers[name]))
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {name}: {error}") from error
        return values


def _padding(layer: Layer) -> Padding:
    """Return a layer's padding on both sides of each axis; PyTorch puts the odd entry of "same" after."""
    if layer.padding == "same":
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return tuple((span // 2, span - span // 2) for span in spans)
    if layer.padding == "valid":
        return "valid"
    return tuple((p, p) for p in layer.padding)


def _wide(dtype: Any) -> Any:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
