"""`inspect`: what each layer of a model does as it really runs, and what bounds the whole."""

from __future__ import annotations

import fnmatch
import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convla._array import describe
from convla._validate import check_real
from convla.networks.certificate import Certificate
from convla.networks.checkpoints import tasks_of_weights
from convla.networks.files import open_module, read_file
from convla.networks.graph import Network
from convla.networks.report import Inspection, LayerReport
from convla.networks.rows import Inspector, check_memory, tasks_of
from convla.networks.settings import LayerSettings
from convla.networks.weights import Weights

__all__ = ["Plan", "inspect", "read"]


def inspect(
    model: Any,
    example: Any = None,
    *,
    image: Sequence[int] | None = None,
    default: LayerSettings | None = None,
    settings: Sequence[tuple[str, LayerSettings]] = (),
    measures: Sequence[str] | None = None,
    only: str | None = None,
    runs: bool = True,
    certify: bool = True,
    data: Any = None,
    budget: float | None = None,
    progress: Callable[[LayerReport], None] | None = None,
) -> Inspection:
    """Measure every layer of a model, as it runs on an example, and bound the whole.

    Parameters
    ----------
    model : torch.nn.Module, path, mapping of str to array, Weights or Network
        A module is run once on the example. A file may hold a graph (.onnx, .pt2, .keras), or weights alone (see
        `read_model`); weights do not say how they are used, and what is assumed is marked in the report.
    example : tensor, or tuple or mapping of tensors, optional
        What a module takes; a batch of one will do. Only modules need one.
    image : sequence of int, optional
        For weights alone: the image that each convolution is given, without its channels. For a graph in a file: the
        input's, where the file leaves it open.
    default : LayerSettings, optional
        For weights alone: how layers use their kernels that no pattern of `settings` matches. By default padding
        "same", stride 1, one group.
    settings : sequence of (pattern, LayerSettings)
        For weights alone: as `read_settings` returns them.
    measures : sequence of {"sigma_max", "sigma_min", "stable_rank", "similarity", "orthogonality", "density"}, optional
        What to find; all by default, but for densities that take more than about a tenth of a second each.
    only : str, optional
        A pattern of layers' names, ``*`` standing for anything; the network is then not bounded.
    runs : bool, default True
        Have rows also for layers that stand together, such as a convolution and the normalisation behind it.
    certify : bool, default True
        Bound the network's Lipschitz constant, where the model has a graph and "sigma_max" is measured.
    data : tensor or array, or tuple or mapping of these, optional
        Inputs at which the Jacobian bounds the Lipschitz constant from below; by default the example of a module. Of
        files those in .onnx and .pt2 can be differentiated, by PyTorch.
    budget : float, optional
        Seconds. All rows are looked at first, and then worked on while there is time, those of little work first. What
        is only estimated then, or left out, the rows say.
    progress : callable, optional
        Called with each row as it is done.

    Returns
    -------
    Inspection
        With the rows that were done, if Ctrl-C came after the first: then ``complete`` is false.

    Raises
    ------
    TypeError
        If `model` is none of these, or a module has no example.
    ShapeError, ValueError
        If settings do not fit a layer, a pattern matches nothing, or an image and its features do not fit the memory.
        Nothing has been measured then.
    WeightsError, OSError
        If a file cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import inspect
    >>> report = inspect({"conv.weight": np.ones((2, 1, 1)), "conv.bias": np.ones(2)}, image=(8,))
    >>> report["conv.weight"].quantities["similarity"], list(report.others)
    (1.0, ['conv.bias'])
    """
    plan = Plan(
        model,
        example,
        image=image,
        default=default,
        settings=settings,
        measures=measures,
        only=only,
        runs=runs,
        certify=certify,
        data=data,
        budget=budget,
    )
    return plan.run(progress)


class Plan:
    """What an inspection will do: everything is read and checked, and nothing measured yet.

    Parameters
    ----------
    model, example, image, default, settings, measures, only, runs, certify, data, budget
        As for `inspect`.

    Attributes
    ----------
    tasks : tuple of Task
        The rows to be made.
    columns : tuple of Column
    budget : float
        Infinite where none is given.
    """

    def __init__(
        self,
        model: Any,
        example: Any = None,
        *,
        image: Sequence[int] | None = None,
        default: LayerSettings | None = None,
        settings: Sequence[tuple[str, LayerSettings]] = (),
        measures: Sequence[str] | None = None,
        only: str | None = None,
        runs: bool = True,
        certify: bool = True,
        data: Any = None,
        budget: float | None = None,
    ) -> None:
        self._data, self._at_data = (example, False) if data is None else (data, True)
        self._module = model if _is_module(model) else _module_of(model, image) if self._at_data else None
        if self._at_data:
            _jacobians().check_data(self._module, data)
        self.budget = math.inf if budget is None else check_real("budget", budget, minimum=0.0)
        found = read(model, example, image)
        self._source = dict(found.source)
        if isinstance(found, Network):
            found = _finite(found)
            tasks = tasks_of(found, runs=runs)
            self._others = {one.name: one.what for one in found.nodes.values() if one.kind == "unknown" and one.inputs}
        else:
            tasks, self._others = tasks_of_weights(
                found, image, default=default or LayerSettings(), settings=settings, only=only
            )
        chosen = [task for task in tasks if only is None or fnmatch.fnmatchcase(task.name, only)]
        if only is not None and not chosen:
            names = found.layers if isinstance(found, Network) else found.arrays
            raise ValueError(f"only: {only!r} matches no layer; the names are {', '.join(names)[:300]}")
        self._inspector = Inspector(chosen, measures=measures, budget=self.budget)
        self.tasks, self.columns = self._inspector.tasks, self._inspector.columns
        whole = certify and only is None and self._inspector.has_bounds
        self._network = found if whole and isinstance(found, Network) else None
        if self._inspector.is_spectral:
            for task in chosen:
                check_memory(task)

    @property
    def seconds_left(self) -> float:
        """How long the rows to come are expected to take, by those that are done."""
        return self._inspector.seconds_left

    def run(self, progress: Callable[[LayerReport], None] | None = None) -> Inspection:
        """Measure; see `inspect`."""
        done: list[LayerReport] = []
        try:
            for row in self._inspector.rows():
                done.append(row)
                if progress is not None:
                    progress(row)
            return self.report(done, self._certificate())
        except KeyboardInterrupt:
            if not done:
                raise
            return self.report(done, complete=False)

    def report(
        self, rows: Sequence[LayerReport], certificate: Certificate | None = None, *, complete: bool = True
    ) -> Inspection:
        """Return rows as a report."""
        return Inspection(tuple(rows), self.columns, certificate, dict(self._others), dict(self._source), complete)

    def _certificate(self) -> Certificate | None:
        if self._network is None:
            return None
        certificate = self._inspector.certificate(self._network)
        if self._module is None or (math.isinf(certificate.upper) and not self._at_data):
            return certificate
        if not self._at_data and not self._inspector.has_time_for_jacobian(self._network):
            return certificate
        try:
            return certificate.with_lower(_jacobians().largest_jacobian_norm(self._module, self._data))
        except (NotImplementedError, RuntimeError, TypeError):  # what PyTorch cannot differentiate, or copy
            return certificate


def read(model: Any, example: Any = None, image: Sequence[int] | None = None) -> Network | Weights:
    """Return a model as a network, or as weights where nothing says how they are used.

    Parameters
    ----------
    model, example, image
        As for `inspect`.

    Returns
    -------
    Network or Weights

    Raises
    ------
    TypeError, WeightsError, OSError
        As `inspect`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.networks.inspection import read
    >>> list(read({"conv.weight": np.ones((2, 1, 1))}).arrays)
    ['conv.weight']
    """
    if isinstance(model, (Network, Weights)):
        return model
    if isinstance(model, (str, os.PathLike)):
        return read_file(Path(model), image)
    if _is_module(model):
        if example is None:
            raise TypeError("example must be an input of the module, got None: a module is looked at as it runs")
        network: Network = importlib.import_module("convla.frameworks.torch.recording").read_module(model, example)
        return network
    if isinstance(model, Mapping):
        return Weights({name: np.asarray(array) for name, array in model.items()})
    raise TypeError(f"model must be a torch.nn.Module, a path, or arrays by name, got {describe(model)}")


def _finite(network: Network) -> Network:
    """Return a network in which nothing is known of layers whose weights hold NaN or infinity."""
    damaged = {
        name: replace(node, kind="unknown", what=f"{node.what}: NaN or infinity in its weight", layer=None)
        for name, node in network.nodes.items()
        if node.layer is not None and not np.isfinite(node.layer.kernel).all()
    }
    return replace(network, nodes={**network.nodes, **damaged}) if damaged else network


def _module_of(model: Any, image: Sequence[int] | None) -> Any:
    """Return the network in a file as a module of PyTorch, to be differentiated at data."""
    if not isinstance(model, (str, os.PathLike)):
        raise ValueError(f"data are of use for modules and for files with a graph, got {describe(model)}")
    return open_module(Path(model), image)


def _jacobians() -> Any:
    # The adapter stands above this package, and is loaded only for those who have the framework.
    return importlib.import_module("convla.frameworks.torch.jacobians")


def _is_module(model: object) -> bool:
    torch = sys.modules.get("torch")  # who has a module has imported it
    return torch is not None and isinstance(model, torch.nn.Module)
