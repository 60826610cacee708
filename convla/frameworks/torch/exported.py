"""Files of ``torch.export.save``: the graph is JSON and the weights are bytes, so that both are read as data.

Nothing is unpickled, and no operator is called but the known ones of PyTorch that `steps` has a rule for, or that only
make constants. Of any other the value is taken as zeros of the size that the file says; nothing is proved of it.
"""

from __future__ import annotations

import json
import math
import operator
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function

from convla.errors import ConvlaError, WeightsError
from convla.frameworks.torch.calls import plain_name
from convla.frameworks.torch.recording import read_module
from convla.frameworks.torch.steps import STEPS
from convla.networks.archives import check_memory, open_archive
from convla.networks.graph import Network

__all__ = ["ExportedProgram", "open_program", "read_program"]


# The numbers of `torch._export.serde.schema.ScalarType`.
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip

_MAKERS = frozenset(
    ("arange", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "scalar_tensor", "empty", "alias",
     "lift_fresh_copy", "eq", "ne", "lt", "le", "gt", "ge")
)  # fmt: skip

_SIZES = frozenset(("add", "sub", "mul", "floordiv", "getitem", "eq", "ne", "lt", "le", "gt", "ge"))
"""What a program does with sizes, as `operator` calls it."""

_PLAIN = (
    "as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_strings", "as_expr",
)  # fmt: skip
_KEYWORD = 2

_ENTRIES = 1 << 27


def _core_convolution(x: Tensor, weight: Tensor, bias: Tensor, *settings: Any) -> Tensor:
    stride, padding, dilation, transposed, more, groups = settings
    rank = weight.ndim - 2
    if transposed:
        function = getattr(nn.functional, f"conv_transpose{rank}d")
        return function(x, weight, bias, stride, padding, more, groups, dilation)
    return getattr(nn.functional, f"conv{rank}d")(x, weight, bias, stride, padding, dilation, groups)


def _core_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *rest: Any) -> Any:
    _, epsilon = rest
    return (nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.1, epsilon),)


_CORE: dict[str, Callable[..., Any]] = {
    "convolution": _core_convolution,
    "_native_batch_norm_legit_no_training": _core_batch_norm,
    "native_layer_norm": lambda *args: (nn.functional.layer_norm(*args),),
    "max_pool2d_with_indices": lambda *args: (nn.functional.max_pool2d(*args),),
    "_adaptive_avg_pool2d": nn.functional.adaptive_avg_pool2d,
    "_softmax": lambda x, axis, *_: nn.functional.softmax(x, axis),
    "_log_softmax": lambda x, axis, *_: nn.functional.log_softmax(x, axis),
}
"""Operators of decomposed programs, by functions that `steps` has rules for; the first of several values alone."""


def read_program(path: Path, image: Sequence[int] | None = None) -> Network:
    """Return the network of an exported program's file.

    Parameters
    ----------
    path : path
    image : sequence of int, optional
        The sizes of the input behind its channels, where the program leaves them open; a batch is taken as 1.

    Raises
    ------
    WeightsError
        If the file is malformed, or of another layout.
    """
    program, example = open_program(path, image)
    try:
        return read_module(program, example)
    except ConvlaError:
        raise
    except Exception as error:  # what a damaged program makes PyTorch say
        raise _unreadable(path, error) from error


def open_program(path: Path, image: Sequence[int] | None = None) -> tuple[ExportedProgram, tuple[Tensor, ...]]:
    """Return an exported program in a file as a module, with inputs of zeros.

    Parameters
    ----------
    path, image
        As for `read_program`.

    Returns
    -------
    module : ExportedProgram
    example : tuple of tensors

    Raises
    ------
    WeightsError
        As `read_program`.
    OSError
        If the file cannot be read.
    """
    try:
        with open_archive(path) as archive:
            content = _Archive(path, archive)
            program = ExportedProgram(content.graph, content.weights())
        return program, tuple(program.examples(path, image))
    except (OSError, ConvlaError):
        raise
    except Exception as error:  # whatever a parser makes of hostile bytes is the file's fault
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return WeightsError(f"{path}: not a readable .pt2 file: {words}")


class _Archive:
    """What an archive holds: the graph of its only program, and tensors as bytes."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        names = archive.namelist()
        programs = [name for name in names if "/models/" in name and name.endswith(".json")]
        if len(programs) != 1:
            if any(name.endswith("serialized_exported_program.json") for name in names):
                why = "written by PyTorch before version 2.8, in a layout that is not read: load it and save it again"
            else:
                why = f"it holds {len(programs)} exported programs: one is read"
            raise WeightsError(f"{path}: {why}, or inspect torch.export.load(...).module()")
        self._folder, _, name = programs[0].partition("/models/")
        self._name = name.removesuffix(".json")
        order = f"{self._folder}/byteorder"
        if order in names and archive.read(order) != b"little":
            raise WeightsError(f"{path}: numbers of the byte order {archive.read(order)!r} are not read")
        self.graph: Mapping[str, Any] = json.loads(archive.read(programs[0]))["graph_module"]

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        found = {}
        for kind in ("weights", "constants"):
            place = f"{self._folder}/data/{kind}/"
            member = f"{place}{self._name}_{kind}_config.json"
            if member not in self._archive.namelist():
                continue
            for name, entry in json.loads(self._archive.read(member))["config"].items():
                if entry.get("use_pickle") or not entry.get("tensor_meta"):
                    raise WeightsError(f"{self._path}: {name!r} in it is a pickled object, which is never loaded")
                found[name] = self._tensor(entry["tensor_meta"], self._archive.read(place + entry["path_name"]))
        return found

    def _tensor(self, meta: Mapping[str, Any], content: bytes) -> Tensor:
        sizes, strides = ([int(one["as_int"]) for one in meta[key]] for key in ("sizes", "strides"))
        dtype = _dtype(meta)
        if 0 in sizes:
            return torch.empty(sizes, dtype=dtype)
        flat = torch.frombuffer(bytearray(content), dtype=dtype)
        # PyTorch refuses a view that reaches beyond what is stored.
        return flat.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"])).clone()


def _dtype(meta: Mapping[str, Any]) -> Any:
    if meta["dtype"] not in _DTYPES:
        raise ValueError(f"a tensor of the type number {meta['dtype']}, which is not read")
    return _DTYPES[meta["dtype"]]


class ExportedProgram(nn.Module):  # type: ignore[misc]
    """A program's graph, run step by step.

    Parameters
    ----------
    graph_module : mapping
        As the file has it.
    weights : mapping of str to tensor
    """

    def __init__(self, graph_module: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._graph = graph_module["graph"]
        self._values = self._graph["tensor_values"]
        self._given: list[str] = []
        self._open: dict[str, int] = {}
        self._places: dict[str, str] = {}
        for spec in graph_module["signature"]["input_specs"]:
            ((kind, entry),) = spec.items()
            if kind == "user_input":
                self._given.append(_name_of(entry["arg"]))
                continue
            stored = next((str(entry[key]) for key in entry if key.endswith("_name")), "")
            if stored not in weights:
                raise ValueError(f"its input of the kind {kind} is not stored")
            self._places[entry["arg"]["name"]] = stored
            self._keep(stored, weights[stored])

    def _keep(self, name: str, tensor: Tensor) -> None:
        """Register a tensor by its name, in modules within modules as the dots say."""
        *path, last = name.split(".")
        place: Any = self
        for part in path:
            place = place._modules.setdefault(part, nn.Module())  # a name may be that of any attribute
        place._buffers[last] = tensor

    def examples(self, path: Path, image: Sequence[int] | None) -> Iterator[Tensor]:
        """Give the inputs as zeros."""
        for name in self._given:
            meta = self._values[name]
            sizes = []
            for axis, size in enumerate(meta["sizes"]):
                behind = axis - (len(meta["sizes"]) - len(image or ()))
                if "as_int" in size:
                    sizes.append(int(size["as_int"]))
                elif image is not None and behind >= 0 and axis >= 1:
                    sizes.append(int(image[behind]))
                elif axis == 0:
                    sizes.append(1)
                else:
                    raise WeightsError(
                        f"{path}: the size of axis {axis} of input {name!r} is open: image must say it, without the "
                        "channels"
                    )
            check_memory(path, 8 * math.prod(sizes))
            yield torch.zeros(sizes, dtype=_dtype(meta))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the program's tensors of some inputs."""
        tensors = dict([*self.named_parameters(), *self.named_buffers()])
        known: dict[str, Any] = {name: tensors[stored] for name, stored in self._places.items()}
        known.update(zip(self._given, inputs, strict=True))
        self._open = {
            size["as_expr"].get("expr_str"): length
            for name, tensor in zip(self._given, inputs, strict=True)
            for size, length in zip(self._values[name]["sizes"], tensor.shape, strict=True)
            if "as_expr" in size
        }
        for node in self._graph["nodes"]:
            self._run(node, known)
        return tuple(known[one["as_tensor"]["name"]] for one in self._graph["outputs"] if "as_tensor" in one)

    def _run(self, node: Mapping[str, Any], known: dict[str, Any]) -> None:
        args, kwargs = [], {}
        for given in node["inputs"]:
            value = _argument(given["arg"], known)
            if given.get("kind") == _KEYWORD:
                kwargs[given["name"]] = value
            else:
                args.append(value)
        outputs = [name for one in node["outputs"] for name in _names(one)]
        value = self._called(str(node["target"]), args, kwargs, outputs)
        # Of several values a file names those that are used.
        known.update(zip(outputs, value if isinstance(value, (tuple, list)) else [value], strict=False))

    def _called(self, target: str, args: list[Any], kwargs: dict[str, Any], outputs: list[str]) -> Any:
        """Call an operator that is known, and note any other."""
        if target.startswith("_operator.") and target.removeprefix("_operator.") in _SIZES:
            return getattr(operator, target.removeprefix("_operator."))(*args)
        space, _, rest = target.removeprefix("torch.ops.").partition(".")
        name, _, overload = rest.partition(".")
        if space != "aten":
            return self._unread(rest, args, kwargs, outputs)
        if name == "sym_size":
            return args[0].shape[args[1]]
        if name.startswith("_assert"):
            return None
        if name in _CORE:
            return _CORE[name](*args, **kwargs)
        if name.rstrip("_") in _MAKERS or plain_name(name) in STEPS:
            _check_entries(name, args)
            return getattr(getattr(torch.ops.aten, name), overload or "default")(*args, **kwargs)
        return self._unread(name, args, kwargs, outputs)

    def _unread(self, name: str, args: list[Any], kwargs: dict[str, Any], outputs: list[str]) -> Any:
        tensors = [one for one in _flat([args, list(kwargs.values())]) if isinstance(one, torch.Tensor)]
        metas = [self._values[one] for one in outputs if one in self._values]
        sizes = [[self._length(size, name) for size in meta["sizes"]] for meta in metas]

        def unread(*_: Tensor) -> Any:
            made = [torch.zeros(shape, dtype=_dtype(meta)) for shape, meta in zip(sizes, metas, strict=True)]
            return made[0] if len(made) == 1 else tuple(made)

        if len(metas) < len(outputs) or not tensors or not torch._C._is_torch_function_mode_enabled():
            raise NotImplementedError(f"the operator {name[:60]!r} is not read")
        unread.__name__ = name
        return handle_torch_function(unread, tensors, *tensors)

    def _length(self, size: Mapping[str, Any], name: str) -> int:
        """Return a size of a value; one that is open, as the input with the same has it."""
        if "as_int" in size:
            return int(size["as_int"])
        expression = size["as_expr"].get("expr_str")
        if expression not in self._open:
            raise NotImplementedError(f"the operator {name[:60]!r} is not read where sizes are left open")
        return int(self._open[expression])


def _check_entries(name: str, args: Sequence[Any]) -> None:
    """Refuse a constant, or copies, of more entries than a network has use for: a file must not take all memory."""
    numbers = [one for one in _flat(args) if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if name in ("arange", "scalar_tensor") or not numbers:
        entries = max((abs(one) for one in numbers), default=0)
    elif name in ("zeros", "ones", "full", "empty", "repeat", "expand", "tile"):
        sizes = next((one for one in args if isinstance(one, (list, tuple))), ())
        entries = math.prod(max(1, abs(size)) for size in sizes)
    else:
        entries = max(abs(one) for one in numbers) if name in ("pad", "repeat_interleave") else 0
    if entries > _ENTRIES:
        raise ValueError(f"{name} of {entries} entries")


def _name_of(argument: Mapping[str, Any]) -> str:
    if "as_tensor" not in argument:
        raise ValueError("an input that is no tensor")
    return str(argument["as_tensor"]["name"])


def _names(output: Mapping[str, Any]) -> Iterator[str]:
    """Give the names that an output of a node has."""
    if "as_tensors" in output:
        yield from (str(one["name"]) for one in output["as_tensors"])
    elif "as_tensor" in output:
        yield str(output["as_tensor"]["name"])
    elif "as_sym_int" in output and "as_name" in output["as_sym_int"]:
        yield str(output["as_sym_int"]["as_name"])


def _argument(argument: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """Return what stands for an argument in the file."""
    ((kind, value),) = argument.items()
    if kind == "as_tensor":
        return known[value["name"]]
    if kind == "as_tensors":
        return [known[one["name"]] for one in value]
    if kind == "as_none":
        return None
    if kind in ("as_optional_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
        return known[value["as_name"]] if "as_name" in value else _argument(value, known)
    if kind in ("as_optional_tensors", "as_sym_ints"):
        return [known[one["as_name"]] if "as_name" in one else _argument(one, known) for one in value]
    if kind == "as_scalar_type":
        return _DTYPES[value]
    if kind in ("as_device", "as_layout", "as_memory_format"):
        return None  # the host's memory, in the usual order
    if kind in _PLAIN:
        return value
    raise NotImplementedError(f"an argument of the kind {kind[:60]!r} is not read")


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for one in value:
            yield from _flat(one)
    else:
        yield value
