"""Kernels that a file holds in parts: what weight_norm, spectral_norm and pruning have stored, put together.

PyTorch's reparametrisations keep other arrays than the weight that a layer uses. Here that weight is made from them as
the layer makes it when it is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from convla.networks.naming import neighbour, parts_of

__all__ = ["Assembled", "assemble"]

_NEW = ".parametrizations.weight."


class Assembled(NamedTuple):
    """A weight that is made from parts: the array, a sentence, and the names of the parts."""

    array: np.ndarray[Any, Any]
    note: str
    parts: tuple[str, ...]


def assemble(arrays: Mapping[str, Any]) -> dict[str, Assembled]:
    """Return the weights that a model holds in parts, by the name that each has in its layer.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray

    Returns
    -------
    dict of str to Assembled

    References
    ----------
    T. Salimans and D. P. Kingma, Weight Normalization, NeurIPS 2016; T. Miyato et al., Spectral Normalization for
    Generative Adversarial Networks, ICLR 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.parametrizations import assemble
    >>> parts = {"conv.weight_g": np.full((1, 1, 1), 10.0), "conv.weight_v": np.array([[[3.0, 4.0]]])}
    >>> assemble(parts)["conv.weight"].array
    array([[[6., 8.]]])
    """
    found = {}
    for name, array in arrays.items():
        for last, make in _WAYS.items():
            if not (name.endswith(last) if last.startswith(".") else parts_of(name)[-1] == last):
                continue
            target = f"{name.split(_NEW)[0]}.weight" if _NEW in name else neighbour(name, "weight")
            # The old spectral_norm's vector has the name of the old weight_norm's direction.
            if array.ndim >= 2 and array.dtype.kind == "f" and target not in arrays:
                found[target] = make(name, arrays)
    return found


def _weight_norm(direction: str, norms: str, arrays: Mapping[str, Any]) -> Assembled:
    v, g = arrays[direction], arrays.get(norms)
    if g is None or (g.ndim not in (0, v.ndim)) or any(a not in (1, b) for a, b in zip(g.shape, v.shape, strict=False)):
        return _as_stored(direction, arrays)
    axes = tuple(axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1)
    wide = v.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = wide * (g / np.sqrt((wide * wide).sum(axis=axes, keepdims=True)))
    return Assembled(weight.astype(v.dtype), "made from the parts of weight_norm", (direction, norms))


def _normalized(original: str, companions: tuple[str, str], arrays: Mapping[str, Any]) -> Assembled:
    """Return the weight over the singular value that spectral_norm's vectors estimate, or what is left by pruning."""
    weight = arrays[original]
    u, v = (arrays.get(name) for name in companions)
    mask_name = neighbour(original, "weight_mask")
    mask = arrays.get(mask_name)
    if mask is not None and mask.shape == weight.shape:
        return Assembled((weight * mask).astype(weight.dtype), "with the mask of its pruning", (original, mask_name))
    if u is None or v is None or u.ndim != 1 or v.ndim != 1 or u.size * v.size != weight.size:
        return _as_stored(original, arrays)
    # Transposed convolutions are normalised as matrices of their outputs, the second axis.
    axis = 0 if u.size == weight.shape[0] else 1
    if u.size != weight.shape[axis]:
        return _as_stored(original, arrays)
    matrix = np.moveaxis(weight, axis, 0).reshape(u.size, -1).astype(np.float64)
    sigma = float(u.astype(np.float64) @ matrix @ v.astype(np.float64))
    if not np.isfinite(sigma) or sigma == 0.0:
        return _as_stored(original, arrays)
    note = f"over the singular value {sigma:.6g} of spectral_norm"
    return Assembled((weight / sigma).astype(weight.dtype), note, (original, *companions))


def _as_stored(name: str, arrays: Mapping[str, Any]) -> Assembled:
    return Assembled(
        arrays[name], f"{parts_of(name)[-1]} as it is stored: what the layer makes of it is not known", (name,)
    )


def _old_norm(name: str, arrays: Mapping[str, Any]) -> Assembled:
    return _weight_norm(name, neighbour(name, "weight_g"), arrays)


def _old_spectral(name: str, arrays: Mapping[str, Any]) -> Assembled:
    return _normalized(name, (neighbour(name, "weight_u"), neighbour(name, "weight_v")), arrays)


def _new_norm(name: str, arrays: Mapping[str, Any]) -> Assembled:
    return _weight_norm(name, neighbour(name, "original0"), arrays)


def _new_spectral(name: str, arrays: Mapping[str, Any]) -> Assembled:
    factor = neighbour(name, "0.scale")
    if factor in arrays and arrays[factor].ndim == 0:
        note = f"times the factor {float(arrays[factor]):.6g} of convla's spectral_norm"
        kept = (neighbour(name, f"0.{part}") for part in ("vector", "updates"))
        parts = (name, factor, *(part for part in kept if part in arrays))
        return Assembled((arrays[name] * arrays[factor]).astype(arrays[name].dtype), note, parts)
    return _normalized(name, (neighbour(name, "0._u"), neighbour(name, "0._v")), arrays)


_WAYS: dict[str, Callable[[str, Mapping[str, Any]], Assembled]] = {
    "weight_v": _old_norm,
    "weight_orig": _old_spectral,
    f"{_NEW}original1": _new_norm,
    f"{_NEW}original": _new_spectral,
}
"""By the ends of the names of what is stored: two generations of PyTorch's modules."""
