"""What a module does that the recorder cannot see through its functions is refused in words, and never a constant."""

from __future__ import annotations

import math
from typing import Any

import pytest

import convla

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

pytestmark = pytest.mark.torch


def assigned(x: Any) -> Any:
    buffer = torch.zeros(2, 8)
    buffer[:, :4] = 3.0 * x
    return buffer


def written(x: Any) -> Any:
    buffer = torch.zeros(2, 8)
    buffer[:, :4].add_(x)
    return buffer


def stale(x: Any) -> Any:
    y = 2.0 * x
    view = y.view(-1)
    y[:] = 100.0 * y
    return view


OUT_OF_SIGHT: dict[str, tuple[Any, str]] = {
    "assigned to a part of a buffer": (assigned, "in place"),
    "added to a part of a buffer": (written, "shares its memory"),
    "a view of what is overwritten": (stale, "in place"),
    "a transform": (lambda x: torch.vmap(lambda y: 7.0 * y)(x), "compiled code"),
    "a derivative": (lambda x: torch.func.jvp(lambda y: y * y, (x,), (x,))[1], "taken out"),
    "shared memory": (lambda x: 7.0 * torch.from_dlpack(x.detach()), "taken out"),
    "places of maxima": (lambda x: 100.0 * x.max(1).indices.float(), "no floating-point"),
    "other bits": (lambda x: x.view(torch.float64), "of another kind"),
    "a jump": (lambda x: nn.functional.softplus(x, 1.0, 0.1), "not continuous"),
    "noise": (lambda x: nn.functional.dropout(x, 0.5, training=True), "drawn anew"),
    "a division by zero": (lambda x: x / 0, "not finite"),
    "factors of an operation": (lambda x: torch.ops.aten.elu(x, 1.0, 3.0, 1.0), "factors of its own"),
}


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of PyTorch, about itself
@pytest.mark.parametrize("case", OUT_OF_SIGHT)
def test_what_is_done_out_of_sight_is_no_constant(case: str) -> None:
    function, words = OUT_OF_SIGHT[case]
    certificate = convla.inspect(Function(function), torch.randn(2, 4)).certificate
    assert certificate is not None
    assert certificate.upper == math.inf
    assert any(words in reason for reason in certificate.reasons), certificate.reasons


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_code_is_no_constant() -> None:
    traced = torch.jit.trace(nn.Conv1d(2, 2, 3), torch.zeros(1, 2, 4))
    for module in (nn.Sequential(traced, nn.ReLU()), Function(lambda x: traced(x))):
        certificate = convla.inspect(module, torch.randn(1, 2, 4)).certificate
        assert certificate is not None
        assert certificate.upper == math.inf
        assert any("compiled code" in reason for reason in certificate.reasons), certificate.reasons


def test_matrices_from_both_sides_do_not_make_one() -> None:
    """Of X -> A X B the norm is that of A times that of B, and not that of their product."""
    a, b = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    certificate = convla.inspect(
        Function(lambda x: nn.functional.linear(a @ x, b)), torch.zeros(4, 4).double()
    ).certificate
    exact = float(torch.linalg.matrix_norm(a, 2) * torch.linalg.matrix_norm(b, 2))
    assert exact <= certificate.upper <= exact * (1 + 1e-9)  # type: ignore[union-attr]


def test_layers_along_other_axes_stand_apart() -> None:
    """A normalisation of channels behind a linear layer of the last axis is no run, though both have sizes that fit."""
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(1), nn.Linear(4, 3)).double().eval()
    report = convla.inspect(network, torch.zeros(2, 1, 5).double())
    assert [row.name for row in report] == ["0", "1", "2"]
    exact = float(
        torch.linalg.matrix_norm(
            torch.autograd.functional.jacobian(network, torch.zeros(1, 1, 5).double()).reshape(3, 5), 2
        )
    )
    assert exact <= report.certificate.upper  # type: ignore[union-attr]


@pytest.mark.parametrize("function", [lambda x: torch.max(x, other=5.0 * x), lambda x: torch.maximum(x, other=5.0 * x)])
def test_the_larger_of_two_by_name(function: Any) -> None:
    upper = convla.inspect(Function(function), torch.zeros(1, 3)).certificate.upper  # type: ignore[union-attr]
    assert math.sqrt(26) == pytest.approx(upper, rel=1e-12)


def test_tensors_within_lists_are_inputs() -> None:
    network = Function(lambda pair: 2.0 * pair[0] + 3.0 * pair[1])
    certificate = convla.inspect(network, ([torch.zeros(1, 3), torch.zeros(1, 3)],), certify=True).certificate
    assert certificate.upper == pytest.approx(5.0, rel=1e-12)  # type: ignore[union-attr]
