"""A module watched while it runs once: every step that its value depends on, as a node of a network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from convla._array import describe
from convla.frameworks.torch.calls import Call, Padded
from convla.frameworks.torch.layers import check_network, evaluating, version
from convla.frameworks.torch.steps import interpret
from convla.networks.graph import Network, Node, unused_name

__all__ = ["read_module"]

Module = Any

_ESCAPES = frozenset(
    ("item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__array__", "__bool__", "__contains__", "__float__",
     "__index__", "__int__", "__complex__", "__dlpack__", "__reduce_ex__", "data_ptr", "storage", "untyped_storage")
)  # fmt: skip


def read_module(module: Module, example: Any) -> Network:
    """Return a module as the network of the steps that it takes on an example.

    Parameters
    ----------
    module : torch.nn.Module
        Run once on the example, in evaluation mode and without gradients; each module's mode is then set back.
    example : tensor, or tuple, list or mapping of tensors
        What ``module(...)`` takes: one argument, several, or several by name; a batch of one will do.

    Returns
    -------
    Network

    Raises
    ------
    TypeError
        If `module` is no module, or the example holds no tensor of floating-point numbers.
    ValueError
        If a weight has no shape yet, or the value holds no tensor.

    Notes
    -----
    What is read is the way that this example takes through the code: a module that decides by the values of its input
    may take another one for another input.

    Examples
    --------
    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.BatchNorm2d(8))
    >>> from convla.frameworks.torch.recording import read_module
    >>> list(read_module(network, torch.zeros(1, 3, 32, 32)).layers)
    ['0', '1']
    """
    check_network(module)
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name} has no shape yet: pass an input through the network first")
    arguments, named = _arguments(example)
    inputs = list(_tensors((arguments, named)))
    if not any(value.is_floating_point() for value in inputs):
        raise TypeError(f"example must hold a tensor of floating-point numbers, got {describe(example)}")
    recorder = _Recorder(module, inputs)
    with evaluating(module), torch.no_grad(), recorder.naming(module), recorder, _Below(recorder):
        value = module(*arguments, **named)
    outputs = tuple(dict.fromkeys([*(recorder.node_of(tensor) for tensor in _tensors(value)), *recorder.escaped]))
    if not outputs:
        raise ValueError(f"the network must return tensors, got {describe(value)}")
    return Network(recorder.nodes, outputs, {"model": type(module).__name__, "torch": torch.__version__})


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, (tuple, list)) else ((example,), {})


class _Recorder(TorchFunctionMode):  # type: ignore[misc]
    """Turns the calls of PyTorch's functions into nodes, as far as they depend on the inputs.

    Attributes
    ----------
    nodes : dict of str to Node
    escaped : list of str
        Nodes at which the value of a tensor left the tensors: the outputs may depend on them in any way.
    paddings : dict of int to Padded
        What padded tensors were before, by their identity.
    """

    def __init__(self, module: Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.nodes: dict[str, Node] = {}
        self._of_tensor: dict[int, str] = {}
        self._of_storage: dict[int, str] = {}
        self._kept: list[Tensor] = []  # an id is a tensor's own as long as the tensor lives
        self._path: list[str] = []
        self._inputs = inputs
        self._calls = False  # a function that will be noted as a whole
        self.escaped: list[str] = []
        self.paddings: dict[int, Padded] = {}
        self._weights = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
        for number, tensor in enumerate(inputs):
            name = "input" if len(inputs) == 1 else f"input {number}"
            self._add(Node(name, "input", what="input", shape=tuple(tensor.shape)), tensor)

    @contextlib.contextmanager
    def naming(self, module: Module) -> Iterator[None]:
        """Keep the name of the module that runs."""
        hooks: list[Any] = []

        def watch(name: str, one: Module) -> None:
            def enter(*_: Any) -> None:
                self._path.append(name)

            def leave(*_: Any) -> None:
                self._path.pop()

            hooks.append(one.register_forward_pre_hook(enter))
            hooks.append(one.register_forward_hook(leave))

        try:
            for name, one in module.named_modules():
                if not isinstance(one, torch.jit.ScriptModule):  # compiled, which takes no hooks
                    watch(name, one)
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def node_of(self, tensor: Tensor) -> str:
        """Return the node whose value a tensor is; a constant, which no input changes, is a node without inputs."""
        self._follow_aliases([tensor])
        if id(tensor) not in self._of_tensor:
            self._add(
                Node(unused_name(self.nodes, "constant"), "unknown", what="a constant", shape=tuple(tensor.shape)),
                tensor,
            )
        return self._of_tensor[id(tensor)]

    def is_tracked(self, value: Any) -> bool:
        """Tell whether a value depends on the inputs."""
        return isinstance(value, torch.Tensor) and id(value) in self._of_tensor

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function, and note what it did."""
        named = dict(kwargs or {})
        given = list(_tensors((args, named)))
        self._follow_aliases(given)
        if not self.escaped and any(map(torch._C._functorch.is_gradtrackingtensor, given)):
            self._escape("a derivative", self._inputs)  # which hides a second tensor in the first
        watched = [tensor for tensor in given if self.is_tracked(tensor)]
        if not watched:
            return function(*args, **named)
        before = [version(tensor) for tensor in given]
        self._calls = True
        try:
            value = function(*args, **named)
        finally:
            self._calls = False
        changed = [tensor for tensor, then in zip(given, before, strict=True) if version(tensor) != then]
        results = list(_tensors(value))
        call = Call(function, tuple(args), named, value, self)
        if not results and getattr(function, "__name__", "") in _ESCAPES:
            # What becomes of a number outside of tensors cannot be followed.
            self._escape(call.name, watched)
        if not results and not changed:
            return value
        for tensor in changed:
            self.paddings.pop(id(tensor), None)  # it is no longer what the padding made
        self._spoil_views(changed)
        if changed and not any(tensor is one for one in changed for tensor in results):
            # Such as x[...] = y, which returns nothing.
            self._note(Node("", "unknown", what=f"{call.name}: changes a tensor in place"), call.name, watched, changed)
            return value
        self._note(interpret(call), call.name, watched, results)
        return value

    def note_below(self, function: Callable[..., Any], given: Any, value: Any) -> None:
        """Note an operation that no function called that is noted: then compiled code did, or a transform like vmap."""
        if self._calls:
            return
        tensors, results = list(_tensors(given)), list(_tensors(value))
        self._follow_aliases(tensors)
        watched = [tensor for tensor in tensors if self.is_tracked(tensor)]
        name = str(getattr(function, "__name__", function)).partition(".")[0].strip("_")
        if watched and results:
            what = f"{name}: done by compiled code or under a transform, which is not followed"
            self._spoil_views([tensor for tensor in results if any(tensor is one for one in tensors)])
            self._note(Node("", "unknown", what=what), name, watched, results)
        elif watched:
            self._escape(name, watched)

    def inputs_of(self, tensors: Sequence[Tensor]) -> tuple[str, ...]:
        """Return the nodes of tensors, each once."""
        return tuple(dict.fromkeys(self._of_tensor[id(tensor)] for tensor in tensors))

    def name_of_weight(self, tensor: Tensor) -> str | None:
        """Return the name of a parameter or buffer."""
        return self._weights.get(id(tensor))

    def _note(self, node: Node, function: str, watched: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Add a node, and say that it is where some tensors come from."""
        inputs = node.inputs or self.inputs_of(watched)
        name = unused_name(self.nodes, node.name or self._name(function))
        shape = tuple(results[0].shape)
        self._add(replace(node, name=name, inputs=inputs, shape=shape))
        for tensor in results:
            self._keep(tensor, name)
        jumps = [tensor for tensor in results if not tensor.is_floating_point()]
        if jumps and node.kind != "unknown":  # such as the places of maxima
            what = f"{function}: its value holds no floating-point numbers"
            self._note(Node(f"{name}, places", "unknown", (name,), what), function, watched, jumps)

    def _name(self, function: str) -> str:
        path = self._path[-1] if self._path else ""
        return f"{path}.{function}" if path else function

    @property
    def module_name(self) -> str:
        """The name of the innermost module that runs; "" for the whole."""
        return self._path[-1] if self._path else ""

    def _escape(self, function: str, watched: Sequence[Tensor]) -> None:
        name = unused_name(self.nodes, f"{self._name(function)}, read")
        what = "a value is taken out of a tensor, and what is done with it cannot be followed"
        self._add(Node(name, "unknown", self.inputs_of(watched), what))
        self.escaped.append(name)

    def _add(self, node: Node, tensor: Tensor | None = None) -> None:
        self.nodes[node.name] = node
        if tensor is not None:
            self._keep(tensor, node.name)

    def _keep(self, tensor: Tensor, name: str) -> None:
        self._of_tensor[id(tensor)] = name
        self._kept.append(tensor)
        if self.nodes[name].inputs or self.nodes[name].kind == "input":  # and is no constant
            self._of_storage[_place(tensor)] = name

    def _follow_aliases(self, tensors: Sequence[Tensor]) -> None:
        """Nothing is known of a tensor that was not made before our eyes from what it shares its memory with."""
        for tensor in tensors:
            place = _place(tensor)
            if not self.is_tracked(tensor) and place and place in self._of_storage:
                name = unused_name(self.nodes, f"{self._of_storage[place]}, shared")
                what = "shares its memory with a tensor that depends on the input"
                self._add(Node(name, "unknown", (self._of_storage[place],), what, tuple(tensor.shape)), tensor)

    def _spoil_views(self, changed: Sequence[Tensor]) -> None:
        """Nothing is known of tensors that share their memory with one that has been changed in place."""
        for tensor in changed:
            place = _place(tensor)
            for other in self._kept:
                if other is not tensor and place and _place(other) == place:
                    name = unused_name(self.nodes, f"{self._of_tensor[id(other)]}, changed")
                    what = "shares its memory with a tensor that is changed in place"
                    source = self.inputs_of([one for one in (other, tensor) if self.is_tracked(one)])
                    self.nodes[name] = Node(name, "unknown", source, what, tuple(other.shape))
                    self._of_tensor[id(other)] = name


class _Below(TorchDispatchMode):  # type: ignore[misc]
    """Sees the operations below PyTorch's functions, which compiled code and transforms call by themselves."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and tell the recorder."""
        value = function(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():  # what the recorder asks of tensors is no step of the network
            self._recorder.note_below(function, (args, kwargs), value)
        return value


def _place(tensor: Tensor) -> int:
    """Return where a tensor's memory begins; 0 where it has none of its own."""
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (NotImplementedError, RuntimeError):  # a tensor of a transform, or a sparse one
        return 0


def _tensors(value: Any) -> Iterator[Tensor]:
    """Give the tensors in nested sequences and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
