"""The file of a saved descent: an ``.npz`` of its arrays, with a header in JSON for all that is no array."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from convla._array import to_numpy
from convla._files import atomic_write
from convla.errors import ConvlaError
from convla.operators import ConvOperator
from convla.penalties.steps import Step
from convla.penalties.tracker import Tracker

__all__ = ["read", "write"]

Result = TypeVar("Result")

GEOMETRY = ("image_shape", "padding", "stride", "dilation", "groups", "boundary")


def write(
    path: str | os.PathLike[str],
    operator: ConvOperator,
    header: Mapping[str, Any],
    choices: Mapping[str, Any],
    arrays: Mapping[str, Any],
) -> None:
    """Write a descent: the old file or the new one is there, whenever the process ends.

    Parameters
    ----------
    path : path-like
    operator : ConvOperator
    header : mapping
        What JSON can hold.
    choices : mapping
        "tracker", "step" and "stop": dataclasses, or None.
    arrays : mapping
    """
    geometry = {name: getattr(operator.geometry, name) for name in GEOMETRY}
    options = {
        name: None if choice is None else {"name": getattr(choice, "name", name), "settings": asdict(choice)}
        for name, choice in choices.items()
    }
    text = json.dumps({**header, "geometry": geometry, "choices": options})
    with atomic_write(path, follow_links=True) as file:
        np.savez(file, header=np.array(text), kernel=to_numpy(operator.kernel), **arrays)


def read(path: str | os.PathLike[str], build: Callable[[dict[str, Any]], Result], *, stop: type) -> Result:
    """Return what is built of a saved descent: of its header, with its choices as objects, and its "arrays".

    Raises
    ------
    ConvlaError
        If the file is not one that `write` wrote.
    """
    families: dict[str, Callable[[str], type]] = {
        "tracker": lambda name: type(Tracker.of("tracker", name)),
        "step": lambda name: type(Step.of("step", name)),
        "stop": lambda _: stop,
    }
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(str(arrays.pop("header")))
        choices = {
            name: None if choice is None else families[name](choice["name"])(**choice["settings"])
            for name, choice in header["choices"].items()
        }
        return build({**header, "choices": choices, "arrays": arrays})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConvlaError(f"{path} is not a saved descent ({error})") from error
