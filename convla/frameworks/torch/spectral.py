"""The penalty R_alpha on a layer's singular values as a loss module, whose buffers follow the singular vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convla._array import describe
from convla._threads import blas_on_one_thread, in_order
from convla.errors import ShapeError
from convla.frameworks.torch._closed_form import Known, check_weight, full_precision, with_gradients
from convla.frameworks.torch.layers import (
    CONVOLUTIONS,
    check_network,
    convolution_settings,
    convolutions,
    current_weight,
    image_shapes,
    weight_hook,
)
from convla.geometry import ConvGeometry
from convla.operators import ConvOperator
from convla.penalties.pairs import DENSE_ENTRIES, Gram, pair_gradients, shifted
from convla.penalties.tracker import Tracker, TrackerName

__all__ = ["NetworkSpectralPenalty", "SpectralPenalty"]

Layer = Any

_LARGE = 2**22
"""Multiplications of one application, some 0.2 ms, from which on layers are followed at the same time."""


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
    tracker : {"block", "power", "exact"} or Tracker
        How singular vectors are followed from one forward pass to the next: both ends of the spectrum, each by a block;
        two by the power method, as in the paper's Algorithm 2.1, which can lag behind or stay on the wrong vector; or
        the decomposition of the whole matrix each time, for at most 2**20 entries. `Block`, `Power` and `Exact` of
        `convla.penalties` have their settings: ``Block(vectors=4, steps=20, cluster_rtol=0.01)``.

    Attributes
    ----------
    tracker : Tracker
    largest_vectors, smallest_vectors, ... : tensor
        Buffers: what the tracker carries on, by the names of its state. For "block" these are, at either end of the
        spectrum, vectors of every uncoupled part of the map (of each group, for one), the weight that each group was
        last followed at, with its outermost values then and their bounds, and the number of updates: at 0 the vectors
        are found from nothing when they are needed. The lower end is not while ``sigma_max^2`` is above ``2 alpha``,
        where it cannot count; that of a map with more columns than rows is known, and has no buffers. A layer that
        is one matrix of at most 100 channels on one side at each position has none either. For "power" there are the
        two vectors, ``shifted``; for "exact" there is nothing.

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

    The result can be differentiated once, by the closed form of `convla.penalty_gradient`. A call is one operator of
    PyTorch's library, which torch.compile takes as it is; it decides on the host how long to iterate, and stays out of
    CUDA graphs.

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
        gram: Gram = "input",
        tracker: TrackerName | Tracker = "block",
    ) -> None:
        super().__init__()
        self.alpha, self.gram, self.tracker = alpha, gram, Tracker.of("tracker", tracker)
        if not isinstance(layer, CONVOLUTIONS):
            raise TypeError(f"layer must be a torch.nn.Conv1d, Conv2d or Conv3d, got {describe(layer)}")
        if isinstance(layer.weight, nn.parameter.UninitializedParameter):
            raise ValueError("layer has no weight yet: pass an input through it first")
        hooked = weight_hook(layer) is not None
        self._computed = hooked and any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        weight = layer.weight.detach()
        self.kernel_shape = tuple(weight.shape)
        self.setting: dict[str, Any] = {"image_shape": image_shape, **convolution_settings(layer)}
        self.setting["image_shape"] = ConvGeometry(self.kernel_shape, **self.setting).image_shape
        # Zeros of float32 or float64: the shapes say what a saved state must fit.
        target = shifted(
            ConvOperator(torch.zeros_like(weight, dtype=_wide(weight.dtype)), **self.setting), self.alpha, self.gram
        )
        rows, columns = target.factor.shape
        if self.tracker.name == "exact" and rows * columns > DENSE_ENTRIES:
            raise ValueError(
                f"tracker 'exact' takes matrices of at most {DENSE_ENTRIES} entries, got {rows}x{columns}: use 'block'"
            )
        for name, array in self.tracker.initial(target).items():
            self.register_buffer(name, array)
        self._announce()

    def forward(self, weight: Tensor) -> Tensor:
        """Return the penalty of a weight, a tensor of shape () and of the weight's dtype."""
        (value,), gradients = _values([self], [weight], [""])
        return with_gradients([weight], Known(value, gradients)) if gradients else value

    def check(self, weight: Tensor) -> None:
        """Raise what a call raises for a weight that is none of the layer's."""
        check_weight("weight", weight)
        if self._computed and torch.is_grad_enabled() and not weight.requires_grad:
            raise ValueError(
                "weight has no gradient: the layer's normalization computes it in its forward pass, so pass an input "
                "through the layer first, or take the parametrization of the same name"
            )
        if tuple(weight.shape) != self.kernel_shape:
            raise ShapeError(f"weight must have shape {self.kernel_shape}, got {tuple(weight.shape)}")

    def reset(self) -> None:
        """Forget the vectors: the next call finds them from nothing."""
        buffers = list(self.buffers())
        if buffers:
            torch._foreach_zero_(buffers)  # in one call, as they are updated

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        settings = {"kernel_shape": self.kernel_shape, **self.setting}
        settings |= {"alpha": self.alpha, "gram": self.gram, "tracker": self.tracker}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a copy's or a file's state."""
        super().__setstate__(state)
        self._announce()

    def _announce(self) -> None:
        """Make the module's settings known to the operator by the text that it is given instead of them."""
        geometry = ConvGeometry(self.kernel_shape, **self.setting)
        layer = _Followed(geometry, self.alpha, self.gram, self.tracker, tuple(dict(self.named_buffers())))
        self._key = str(layer)
        _FOLLOWED[self._key] = layer


@dataclass(frozen=True)
class _Followed:
    """What the operator knows of a layer besides its weight and the tracker's state: `names` are those of the state."""

    geometry: ConvGeometry
    alpha: float
    gram: Gram
    tracker: Tracker
    names: tuple[str, ...]

    @property
    def products(self) -> int:
        """The multiplications of one application of the layer."""
        return math.prod(self.geometry.kernel_shape) * math.prod(self.geometry.output_shape)

    @blas_on_one_thread()
    def step(self, kernel: Tensor, buffers: Sequence[Tensor], *, gradient: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the value, its gradient if asked for, and the state for the next call."""
        state = {
            name: buffer.to(kernel) if buffer.is_floating_point() else buffer
            for name, buffer in zip(self.names, buffers, strict=True)
        }
        weight = kernel
        if _is_in_host_memory(kernel):
            # NumPy arrays over the same memory, for which there are compiled kernels, and little to do for each call.
            weight, state = kernel.numpy(), {name: buffer.numpy() for name, buffer in state.items()}
        target = shifted(ConvOperator(weight, self.geometry), self.alpha, self.gram)
        pairs, after = self.tracker.step(target, state)
        slope = torch.as_tensor(pair_gradients(target, pairs)[0]) if gradient else kernel.new_empty(0)
        # No result may share memory with an argument.
        carried = [_copied(after[name], buffer) for name, buffer in zip(self.names, buffers, strict=True)]
        return kernel.new_tensor(pairs.value), slope.contiguous(), carried


_FOLLOWED: dict[str, _Followed] = {}
"""The layers of all modules, by texts that say all of them: an operator of PyTorch's library takes no other objects."""


def _follow(
    weights: Sequence[Tensor], state: Sequence[Tensor], layers: Sequence[str], names: Sequence[str], gradient: bool
) -> list[Tensor]:
    """Return the values of all layers, their gradients if asked for, and the states for the next call.

    Large layers are followed at the same time, each by one thread: what lies between two products does not share work.
    """
    jobs, rest = [], iter(state)
    for name, weight, text in zip(names, weights, layers, strict=True):
        layer = _FOLLOWED[text]
        jobs.append((name, layer, weight, list(itertools.islice(rest, len(layer.names)))))

    def run(number: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        name, layer, weight, buffers = jobs[number]
        try:
            return layer.step(weight, buffers, gradient=gradient)
        except (TypeError, ValueError) as error:
            if not name:
                raise
            raise type(error)(f"layer {name}: {error}") from error

    large = [n for n, (_, layer, weight, _) in enumerate(jobs) if _is_large(layer, weight)]
    with full_precision(weights[0]):
        found = dict(zip(large, in_order(run, large), strict=True))
        found |= {number: run(number) for number in range(len(jobs)) if number not in found}
    values, slopes, after = zip(*(found[number] for number in range(len(jobs))), strict=True)
    return [*values, *slopes, *itertools.chain(*after)]


def _is_large(layer: _Followed, weight: Tensor) -> bool:
    """Tell whether the products of a layer take longer than what Python does for them, which one thread does at once.

    On a device the work goes to the stream of the caller's thread.
    """
    return weight.device.type == "cpu" and layer.products >= _LARGE


def _shapes(
    weights: Sequence[Tensor],
    state: Sequence[Tensor],
    layers: Sequence[str],  # noqa: ARG001
    names: Sequence[str],  # noqa: ARG001
    gradient: bool,
) -> list[Tensor]:
    slopes = [
        torch.empty_like(weight, memory_format=torch.contiguous_format) if gradient else weight.new_empty(0)
        for weight in weights
    ]
    return [*(weight.new_empty(()) for weight in weights), *slopes, *map(torch.empty_like, state)]


# It reads values to decide how long to iterate: no part of a CUDA graph.
_followed = torch.library.custom_op(
    "convla::spectral_penalties",
    _follow,
    mutates_args=(),
    schema="(Tensor[] weights, Tensor[] state, str[] layers, str[] names, bool gradient) -> Tensor[]",
    tags=(torch.Tag.cudagraph_unsafe,),
)
_followed.register_fake(_shapes)


def _values(
    penalties: Sequence[SpectralPenalty], weights: Sequence[Tensor], names: Sequence[str]
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Return the value of each layer's penalty, and the gradients if autograd may ask for them; update the buffers."""
    for penalty, weight, name in zip(penalties, weights, names, strict=True):
        try:
            penalty.check(weight)
        except (TypeError, ValueError) as error:
            if not name:
                raise
            raise type(error)(f"layer {name}: {error}") from error
    wanted = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    states = [list(penalty.buffers()) for penalty in penalties]
    keys, count = [penalty._key for penalty in penalties], len(weights)
    found = _followed([weight.detach() for weight in weights], list(itertools.chain(*states)), keys, names, wanted)
    after = iter(found[2 * count :])
    kept: list[tuple[Tensor, Tensor]] = []
    for penalty, buffers in zip(penalties, states, strict=True):
        new = list(itertools.islice(after, len(buffers)))
        kept += zip(buffers, new, strict=True) if penalty.training else ()
    if kept:
        # In one call, which Ctrl-C does not divide: of a state that is half another nothing is true.
        torch._foreach_copy_(*map(list, zip(*kept, strict=True)))
    return found[:count], tuple(found[count : 2 * count]) if wanted else ()


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
        weights, values, gradients = self._of(network)
        total = torch.stack(values).sum()
        return with_gradients(weights, Known(total, gradients)) if gradients else total

    def layers(self, network: Any) -> dict[str, Tensor]:
        """Return the penalty of each layer by name."""
        weights, values, gradients = self._of(network)
        if gradients:
            known = zip(weights, values, gradients, strict=True)
            values = [with_gradients([weight], Known(value, (gradient,))) for weight, value, gradient in known]
        return dict(zip(self.names, values, strict=True))

    def _of(self, network: Any) -> tuple[list[Tensor], list[Tensor], tuple[Tensor, ...]]:
        check_network(network)
        layers = dict(network.named_modules())
        for name in self.names:
            if name not in layers:
                raise ValueError(f"network must have the layers {self.names}, got one without {name!r}")
        weights = [current_weight(layers[name]) for name in self.names]
        return weights, *_values(list(self.penalties), weights, self.names)


def _is_in_host_memory(kernel: Tensor) -> bool:
    """Tell whether NumPy takes a weight as it is; on other devices all is done there."""
    return kernel.device.type == "cpu" and kernel.dtype in (torch.float32, torch.float64)


def _copied(array: Any, like: Tensor) -> Tensor:
    """Return an array as a tensor of its own, of another's dtype."""
    if isinstance(array, torch.Tensor):
        return array.to(like.dtype, copy=True)
    return torch.tensor(array, dtype=like.dtype)


def _wide(dtype: Any) -> Any:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
