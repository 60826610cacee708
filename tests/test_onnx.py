"""ONNX files: what is read of a graph, against the values that the graph itself gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla import inspect
from convla.cli import run
from convla.errors import WeightsError
from convla.networks.onnx_files import read_onnx

onnx = pytest.importorskip("onnx")
from onnx import helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402


def saved(path: Path, nodes: list[Any], weights: dict[str, Any], size: tuple[Any, ...], out: tuple[Any, ...]) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def jacobian(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the matrix of a linear graph, by its values at unit vectors."""
    evaluator = ReferenceEvaluator(str(path))
    zero = evaluator.run(None, {"x": np.zeros_like(x)})[0]
    rows = []
    for place in range(x.size):
        unit = np.zeros(x.size, x.dtype)
        unit[place] = 1.0
        rows.append((evaluator.run(None, {"x": unit.reshape(x.shape)})[0] - zero).reshape(-1))
    return np.array(rows, np.float64).T


def draw(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


LINEAR = {
    "stride and uneven pads": (
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 0, 2, 1], strides=[2, 1])],
        {"w": draw(3, 2, 3, 2)},
        (1, 3, 4, 5),
    ),
    "groups and dilation": (
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2, dilations=[2, 2], pads=[2, 2, 2, 2])],
        {"w": draw(4, 1, 3, 3)},
        (1, 4, 6, 5),
    ),
    "automatic padding": (
        [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2])],
        {"w": draw(3, 2, 3, 3)},
        (1, 3, 3, 3),
    ),
    "transposed": (
        [
            helper.make_node(
                "ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 0, 1, 0], output_padding=[1, 0]
            )
        ],
        {"w": draw(2, 3, 3, 3)},
        (1, 3, 12, 11),
    ),
    "reflected": (
        [
            helper.make_node("Pad", ["x", "pads"], ["p"], mode="reflect"),
            helper.make_node("Conv", ["p", "w"], ["y"]),
        ],
        {"w": draw(3, 2, 3, 3), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
        (1, 3, 6, 5),
    ),
    "folded": (
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["c", "scale", "b", "mean", "var"], ["y"], epsilon=0.01),
        ],
        {
            "w": draw(3, 2, 3, 3),
            "b": draw(3),
            "scale": draw(3, seed=1),
            "mean": draw(3, seed=2),
            "var": np.array([0.5, 1.0, 4.0], np.float32),
        },
        (1, 3, 6, 5),
    ),
    "two products": (
        [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "b"], ["g"], transB=1),
            helper.make_node("MatMul", ["g", "v"], ["y"]),
        ],
        {"w": draw(7, 60), "b": draw(7), "v": draw(7, 4)},
        (1, 4),
    ),
}


@pytest.mark.parametrize("case", LINEAR)
def test_a_linear_graph_has_the_constant_of_its_matrix(case: str, tmp_path: Path) -> None:
    nodes, weights, out = LINEAR[case]
    path = saved(tmp_path / "model.onnx", nodes, weights, (1, 2, 6, 5), out)
    matrix = jacobian(path, draw(1, 2, 6, 5))
    if len(matrix) != math.prod(out):
        pytest.skip("ONNX's evaluator of this version gives another size than the file says")
    values = np.linalg.svd(matrix, compute_uv=False)
    report = inspect(path, measures=["sigma_max", "sigma_min", "stable_rank"])
    found = report.layers[-1].quantities  # of the layer, or of the run of all
    assert found["sigma_max"] == pytest.approx(values[0], rel=1e-5)
    assert found["sigma_min"] == pytest.approx(values[-1], rel=1e-4, abs=1e-5 * values[0])
    assert found["stable_rank"] == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=1e-5)
    assert found["at_least"] <= values[0] * (1 + 1e-5)
    assert values[0] * (1 - 1e-5) <= found["at_most"]
    assert report.certificate is not None
    assert report.certificate.upper >= values[0] * (1 - 1e-5)


def residual(path: Path, size: tuple[Any, ...] = (1, 3, 8, 8)) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["a"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Sigmoid", ["r"], ["s"]),
        helper.make_node("Mul", ["r", "s"], ["silu"]),
        helper.make_node("Add", ["silu", "x"], ["sum"]),
        helper.make_node("MaxPool", ["sum"], ["m"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["m"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["p", "p"], ["c"], axis=1),
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["c", "target"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["y"], transB=1),
    ]
    weights = {
        "conv.weight": 0.2 * draw(3, 3, 3, 3),
        "fc.weight": draw(4, 24),
        "zero": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
    }
    return saved(path, nodes, weights, size, ("batch", 4))


def test_a_graph_with_sums_pooling_and_computed_shapes(tmp_path: Path) -> None:
    path = residual(tmp_path / "model.onnx")
    network = read_onnx(path)
    kinds = [node.kind for node in network.nodes.values()]
    assert "unknown" not in kinds
    assert list(network.layers) == ["conv", "fc"]
    upper = inspect(path, measures=["sigma_max"]).certificate.upper  # type: ignore[union-attr]
    conv, fc = (inspect(path, measures=["sigma_max"])[name].quantities["at_most"] for name in ("conv", "fc"))
    # The pooling of 3 by 3 with stride 2 reads a position up to four times, that of 2 by 2 halves; twice side by side.
    by_hand = (1.1 * conv + 1.0) * 2.0 * 0.5 * np.sqrt(2.0) * fc  # type: ignore[operator]
    assert upper == pytest.approx(by_hand, rel=1e-9)
    evaluator, rng = ReferenceEvaluator(str(path)), np.random.default_rng(3)
    for _ in range(20):
        x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
        step = (1e-2 * rng.standard_normal(x.shape)).astype(np.float32)
        one, two = (evaluator.run(None, {"x": value})[0] for value in (x, x + step))
        assert np.linalg.norm(two - one) <= upper * np.linalg.norm(step)


def test_open_sizes_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = residual(tmp_path / "model.onnx", ("batch", 3, "height", "width"))
    with pytest.raises(WeightsError, match="the size of axis 2 of input 'x' is open"):
        read_onnx(path)
    assert run(["inspect", str(path), "--image", "8x8", "--measures", "sigma_max", "--warn", "lipschitz>1"]) == 1
    out, err = capsys.readouterr()
    assert "conv   3x3x3x3  8x8    1x1     1x1" in out
    assert "the network: Lipschitz constant at most" in out
    assert "the network: lipschitz" in err


def test_what_has_no_bound_is_refused_in_words(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="scores"),
    ]
    path = saved(tmp_path / "model.onnx", nodes, {}, (1, 3, 4), (1, 3, 3))
    certificate = inspect(path).certificate
    assert certificate is not None
    assert certificate.upper == np.inf
    assert certificate.reasons[0].startswith("scores: MatMul: attention: a product of what depends on the input")


def test_a_hostile_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content in (b"", b"\x08\x01", b"PK\x03\x04" + bytes(50), residual(tmp_path / "a.onnx").read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            read_onnx(path)
