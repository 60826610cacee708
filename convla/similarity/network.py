"""Convolutional similarity of a whole network, and its minimisation before training (CSM Algorithm 1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import numpy as np
from array_api_compat import is_torch_array

from convla._array import accumulation_dtype, all_finite, describe, device_of, is_on_gpu, namespace, to_numbers
from convla._checks import check_not_followed
from convla._dispatch import KERNELS
from convla._validate import check_array, check_choice, check_integer, check_same_shape
from convla.descent import Adam
from convla.similarity.layer import (
    Pairs,
    convolutional_similarity_and_gradient,
    is_quickest_by_lags,
    layer_similarities,
)
from convla.similarity.signatures import SAFE_ENERGY
from convla.typing import AnyArray, Array, ArrayLike, Engine, Namespace

__all__ = ["Initialization", "NetworkSimilarity", "initialize_network", "network_similarity"]


class NetworkSimilarity(NamedTuple):
    """The convolutional similarity of a network's layers."""

    total: float
    layers: dict[str, float]
    gradients: dict[str, AnyArray]


def network_similarity(
    kernels: Mapping[str, ArrayLike],
    *,
    pairs: Pairs = "unordered",
    normalized: bool = False,
    engine: Engine = "auto",
) -> NetworkSimilarity:
    """Return the convolutional similarity of every layer of a network, their sum, and the gradients.

    Parameters
    ----------
    kernels : mapping of str to array of shape (c_out, c_in, *kernel)
        The layers by name.
    pairs, normalized, engine
        As in `convolutional_similarity`.

    Returns
    -------
    NetworkSimilarity
        ``total`` and ``layers`` (by name) as floats, ``gradients`` by name, of the kernels' shapes and dtypes.

    Raises
    ------
    TypeError, ShapeError, ValueError, OverflowError, EngineError
        As `convolutional_similarity`; the message begins with the layer's name.

    Notes
    -----
    All layers of one dtype are worked on together: on a CPU their filters share the threads, on a GPU the launches, and
    the host waits once, for the values.

    References
    ----------
    CSM, Algorithms 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import network_similarity
    >>> network = {"first": np.array([[[1.0, 2.0]], [[3.0, -1.0]]]), "second": np.ones((2, 1, 1))}
    >>> result = network_similarity(network)
    >>> result.total, result.layers
    (39.0, {'first': 38.0, 'second': 1.0})
    """
    _check_mapping(kernels)
    names = list(kernels)
    arrays = {name: _layer(name, kernels[name]) for name in names}
    for name in names:
        check_not_followed(f"kernels[{name!r}]", arrays[name], "the similarity of a network")
    check_choice("pairs", pairs, get_args(Pairs))
    found = _together(arrays, pairs, normalized, engine)
    for name in names:
        if name not in found:
            try:
                value, gradient = convolutional_similarity_and_gradient(
                    arrays[name], pairs=pairs, normalized=normalized, engine=engine
                )
            except (TypeError, ValueError, OverflowError) as error:
                raise type(error)(f"layer {name}: {error}") from error
            found[name] = _number(name, value), gradient
    layers = {name: found[name][0] for name in names}
    return NetworkSimilarity(math.fsum(layers.values()), layers, {name: found[name][1] for name in names})


def _together(
    arrays: Mapping[str, Array], pairs: Pairs, normalized: bool, engine: Engine
) -> dict[str, tuple[float, Array]]:
    """Return value and gradient of the layers that a kernel for whole networks takes."""
    found: dict[str, tuple[float, Array]] = {}
    if engine not in ("auto", "direct") and (layer_similarities.operation, engine) not in KERNELS:
        return found
    kinds: dict[Any, list[str]] = {}
    for name, array in arrays.items():
        if _is_floating(array, namespace(array)) and is_quickest_by_lags(array):
            kinds.setdefault((describe(array), str(array.dtype), str(device_of(array))), []).append(name)
    for names in kinds.values():
        given = [arrays[name] for name in names]
        run = layer_similarities.resolve(*given, engine=engine)
        if run is layer_similarities.reference:
            continue
        values, *gradients = run(*given, pairs=pairs, normalized=normalized, safe=SAFE_ENERGY)
        numbers = to_numbers(values)  # the only thing that is waited for
        found |= {
            name: (number, gradient)
            for name, number, gradient in zip(names, numbers, gradients, strict=True)
            if not math.isnan(number)
        }
    return found


@dataclass
class Initialization:
    """Where a minimisation of convolutional similarity stands; `initialize_network` goes on from it."""

    kernels: dict[str, AnyArray]
    """The kernels after `iteration` steps."""
    settings: dict[str, Any]
    """What the steps depend on; going on with others is refused."""
    norms: dict[str, AnyArray]
    """The norms of the filters at the start, (c_out, 1, ...); empty where they are not kept."""
    iteration: int = 0
    losses: list[float] = field(default_factory=list)
    """The network's similarity before each step."""
    optimizers: dict[str, Adam] = field(default_factory=dict)

    def to_arrays(self) -> dict[str, Any]:
        """Return the whole state as NumPy arrays by name, to be saved."""
        arrays: dict[str, Any] = {
            "iteration": np.array(self.iteration),
            "losses": np.array(self.losses, dtype=np.float64),
            **{f"setting:{key}": np.array(value) for key, value in self.settings.items()},
        }
        for name, kernel in self.kernels.items():
            arrays[f"kernel:{name}"] = kernel
            if self.norms:
                arrays[f"norms:{name}"] = self.norms[name]
            if self.iteration:
                arrays[f"first:{name}"], arrays[f"second:{name}"] = self.optimizers[name].moments
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Initialization:
        """Return the state that `to_arrays` gave.

        Raises
        ------
        ValueError
            If the arrays are not those of a state.
        """
        try:
            named: dict[str, dict[str, Any]] = {}
            for key, array in arrays.items():
                kind, _, name = key.partition(":")
                named.setdefault(kind, {})[name] = array
            settings = {name: array.tolist() for name, array in named["setting"].items()}
            state = cls(
                kernels=dict(named["kernel"]),
                settings=settings,
                norms=named.get("norms", {}),
                iteration=int(named["iteration"][""]),
                losses=named["losses"][""].tolist(),
            )
            state.optimizers = {name: _adam(settings) for name in state.kernels}
            if state.iteration:
                for name, adam in state.optimizers.items():
                    adam.restore(state.iteration, named["first"][name], named["second"][name])
        except KeyError as error:
            raise ValueError(f"not the state of an initialization: it lacks {error}") from error
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not the state of an initialization: {error}") from error
        return state


def initialize_network(
    kernels: Mapping[str, ArrayLike],
    *,
    iterations: int = 200,
    learning_rate: float = 0.001,
    betas: tuple[float, float] = (0.5, 0.999),
    keep_norms: bool = False,
    start: Initialization | None = None,
    progress: Callable[[Initialization], None] | None = None,
    engine: Engine = "auto",
) -> Initialization:
    """Minimise a network's convolutional similarity before training (CSM Algorithm 1).

    Parameters
    ----------
    kernels : mapping of str to array of shape (c_out, c_in, *kernel)
        The layers by name, float32 or float64. They are not changed.
    iterations : int, default 200
        Steps of Adam in all, those of `start` among them.
    learning_rate : float, default 0.001
        Of Adam.
    betas : tuple of float, default (0.5, 0.999)
        Of Adam.
    keep_norms : bool, default False
        Minimise the normalised similarity instead, and bring every filter back to its norm at the start after each
        step. Without it the loss is the published one, which is least at kernels that are 0, and the norms fall.
    start : Initialization, optional
        Go on from there, with the same settings; `kernels` then only names the layers.
    progress : callable, optional
        Called with the state after each step.
    engine : Engine
        As in `convolutional_similarity`.

    Returns
    -------
    Initialization
        The kernels, the losses before each step, and what is needed to go on.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If a layer is no array of finite real numbers of that shape, an option is out of range, or `start` belongs to
        other layers or other settings. The message begins with the layer's name.

    Notes
    -----
    Stopping and going on gives the same bits as not stopping, for any number of threads. An interrupt leaves `start` as
    the last whole step left it.

    References
    ----------
    CSM, Algorithm 1 and Section 6.3.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import initialize_network
    >>> network = {"conv": np.random.default_rng(0).standard_normal((4, 3, 3, 3))}
    >>> result = initialize_network(network, iterations=20)
    >>> len(result.losses), result.losses[-1] < result.losses[0]
    (20, True)
    """
    _check_mapping(kernels)
    iterations = check_integer("iterations", iterations, minimum=0)
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, got {betas!r}")
    settings = {"learning_rate": learning_rate, "betas": list(betas), "keep_norms": keep_norms}
    state = start
    if state is None:
        layers = {name: _layer(name, kernel, floating=True) for name, kernel in kernels.items()}
        norms = {name: _norms(layer) for name, layer in layers.items()} if keep_norms else {}
        state = Initialization(layers, settings, norms, optimizers={name: _adam(settings) for name in layers})
    elif state.settings != settings or set(state.kernels) != set(kernels):
        raise ValueError(
            f"start belongs to layers {sorted(state.kernels)} and settings {state.settings}, got {sorted(kernels)} and "
            f"{settings}"
        )
    else:
        for name, kernel in state.kernels.items():
            check_same_shape(f"layer {name} of kernels", _layer(name, kernels[name]), "start", kernel)
    while state.iteration < iterations:
        _step(state, engine)
        if progress is not None:
            progress(state)
    return state


def _step(state: Initialization, engine: Engine) -> None:
    similarity = network_similarity(state.kernels, normalized=bool(state.settings["keep_norms"]), engine=engine)
    if not _are_finite(list(similarity.gradients.values())):
        raise OverflowError("the gradient of the similarity overflows: kernels must be smaller, or norms kept")
    kernels, optimizers = {}, {name: copy.copy(adam) for name, adam in state.optimizers.items()}
    for name, gradient in similarity.gradients.items():
        kernel = optimizers[name].step(state.kernels[name], gradient)
        if state.norms:
            xp = namespace(kernel)
            kernel = kernel * xp.astype(state.norms[name] / _norms(kernel), kernel.dtype)
        kernels[name] = kernel
    # In one call, which no interrupt divides: the state is that of a whole number of steps.
    losses, iteration = [*state.losses, similarity.total], state.iteration + 1
    vars(state).update(kernels=kernels, optimizers=optimizers, losses=losses, iteration=iteration)


def _are_finite(arrays: Sequence[Array]) -> bool:
    """Tell whether arrays hold no NaN and no infinity; those of a GPU are asked together first."""
    if (
        len({describe(array) for array in arrays if is_on_gpu(array)})
        == len({describe(array) for array in arrays})
        == 1
    ):
        xp = namespace(*arrays)
        if all(map(math.isfinite, to_numbers(xp.stack([xp.astype(xp.sum(array), xp.float64) for array in arrays])))):
            return True
    return all(all_finite(array) for array in arrays)


def _adam(settings: Mapping[str, Any]) -> Adam:
    beta1, beta2 = settings["betas"]
    return Adam(settings["learning_rate"], betas=(beta1, beta2))


def _norms(kernel: Array) -> Array:
    """Return the norm of each filter in float64, (c_out, 1, ...)."""
    xp = namespace(kernel)
    wide = xp.astype(kernel, accumulation_dtype(kernel, xp), copy=False)
    axes = tuple(range(1, kernel.ndim))
    # Divided by the largest entry first: squares of entries may be beyond the dtype where the norm is not.
    largest = xp.max(xp.abs(wide), axis=axes, keepdims=True)
    shares = wide / xp.where(largest > 0, largest, xp.ones_like(largest))
    return largest * xp.sqrt(xp.sum(shares * shares, axis=axes, keepdims=True))


def _check_mapping(kernels: object) -> None:
    if not isinstance(kernels, Mapping):
        raise TypeError(
            f"kernels must be a mapping of layers by name, such as {{'conv1': array}}, got {describe(kernels)}"
        )


def _layer(name: str, kernel: ArrayLike, *, floating: bool = False) -> Array:
    xp = namespace(kernel)
    try:
        # Where they are only measured, NaN and infinity are found later, in the energies.
        array = check_array("kernels", kernel, xp, min_ndim=3, axes="(c_out, c_in, *kernel)", finite=floating)
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {name}: {error}") from error
    if floating and not _is_floating(array, xp):
        raise TypeError(f"layer {name}: kernels must be float32 or float64, got dtype {array.dtype}")
    return array


def _number(name: str, value: Array) -> float:
    # A number read from a tensor that autograd follows brings a warning.
    value = value.detach() if is_torch_array(value) else value
    try:
        return float(value)
    except (TypeError, OverflowError) as error:
        raise type(error)(f"layer {name}: its similarity is no floating-point number: {error}") from error


def _is_floating(array: Array, xp: Namespace) -> bool:
    return array.dtype in (xp.float32, xp.float64)
