"""Every objective is what a report shows, a loss and a penalty of training, on strided, dilated, grouped layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convla import ConvGeometry, ConvOperator, inspect
from convla.networks.settings import LayerSettings
from convla.similarity.objectives import OBJECTIVES
from tests.test_orthogonality import gaussian

ROUNDING = 1000 * 2.0**-53
"""Sums of fewer terms of one sign, taken in another order by another library."""

SETTING: dict[str, Any] = {"stride": (2, 3), "dilation": (2, 1), "groups": 2}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_report_a_loss_and_a_penalty_are_one_value(name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from convla.experiments.training.method_settings import Penalty
    from convla.experiments.training.methods import Regularizer
    from convla.frameworks.torch import layer_losses

    objective = OBJECTIVES[name]
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 6, (3, 2), **SETTING).double()
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3).double(), layer)
    kernel = layer.weight.detach().numpy()
    geometry = ConvGeometry(kernel.shape, (9, 8), padding="valid", **SETTING)
    options = objective.at(geometry)
    expected, gradient = objective.value_and_gradient(kernel, **options)
    assert float(objective.value(kernel, **options)) == float(expected)

    settings = LayerSettings(padding="valid", **SETTING)
    report = inspect({"w": kernel}, image=(9, 8), default=settings, measures=(objective.measure,))
    assert report["w"].quantities[objective.column] == float(expected)

    losses = layer_losses(network, name)
    assert list(losses) == ["0", "1"]
    assert losses["1"].item() == pytest.approx(float(expected), rel=ROUNDING)
    losses["1"].backward()
    largest = np.abs(gradient).max()
    np.testing.assert_allclose(layer.weight.grad.numpy(), gradient, rtol=0, atol=ROUNDING * largest)

    regularizer = Regularizer(network, Penalty(name, 0.5), torch.zeros(1, 2, 9, 8))
    assert regularizer().item() == 0.5 * (losses["0"].item() + losses["1"].item())


@pytest.mark.parametrize("setting", [{}, {"stride": 2}, {"stride": 2, "dilation": 2}, {"stride": 4, "dilation": 6}])
def test_the_ocnn_residual_of_a_layer_is_that_of_its_matrix(setting: dict[str, int]) -> None:
    """On a torus too large for the kernel to reach around, M M^T - I is a copy of it for each place of the output."""
    kernel, image = gaussian((3, 2, 3)), (28,)
    operator = ConvOperator(kernel, image, padding="same", boundary="circular", **setting)
    matrix = operator.to_dense()
    residual = np.linalg.norm(matrix @ matrix.T - np.eye(len(matrix))) ** 2 / operator.range_shape[1]
    settings = LayerSettings(padding="same", boundary="circular", **setting)
    report = inspect({"w": kernel}, image=image, default=settings, measures=("orthogonality",))
    assert report["w"].quantities["ocnn_residual"] == pytest.approx(residual, rel=1e-13)


def test_options_that_a_layer_decides_are_not_for_the_caller() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from convla.frameworks.torch import layer_losses

    network = torch.nn.Conv1d(2, 3, 2)
    with pytest.raises(TypeError, match="groups is not an option of the objective 'ocnn': it has none"):
        layer_losses(network, "ocnn", groups=2)
    with pytest.raises(ValueError, match=r"objective must be one of 'convolutional-similarity', .*, got 'cosine'"):
        layer_losses(network, "cosine")
