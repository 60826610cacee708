"""Keras files, written here as Keras lays them out: what is read, against convolutions by their definition."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla import inspect
from convla.errors import WeightsError
from convla.networks.keras_files import read_keras
from convla.networks.weights import Weights

h5py = pytest.importorskip("h5py")

Array = np.ndarray[Any, Any]


def conv(image: Array, kernel: Array, stride: int, padding: str) -> Array:
    """Convolve (h, w, c) with (kh, kw, c, o) as TensorFlow defines it."""
    taps, pads = kernel.shape[:2], []
    for size, tap in zip(image.shape[:2], taps, strict=True):
        total = max((-(-size // stride) - 1) * stride + tap - size, 0) if padding == "same" else 0
        pads.append((total // 2, total - total // 2))
    padded = np.pad(image, [*pads, (0, 0)])
    outputs = [(n - tap) // stride + 1 for n, tap in zip(padded.shape[:2], taps, strict=True)]
    found = np.zeros((*outputs, kernel.shape[3]))
    for y in range(outputs[0]):
        for x in range(outputs[1]):
            window = padded[y * stride : y * stride + taps[0], x * stride : x * stride + taps[1]]
            found[y, x] = np.tensordot(window, kernel, 3)
    return found


def matrix_of(function: Any, shape: tuple[int, ...]) -> Array:
    units = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    return np.array([function(unit).reshape(-1) for unit in units]).T


def layer(kind: str, name: str, shape: tuple[Any, ...], **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, **config}, "build_config": {"input_shape": [None, *shape]}}


def tensor(name: str) -> dict[str, Any]:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}


def write_keras(path: Path, config: dict[str, Any], weights: dict[str, Array]) -> Path:
    """Write a model as Keras 3 does: a configuration, and weights by the class of their layer."""
    with h5py.File(path.with_suffix(".weights.h5"), "w") as file:
        for name, array in weights.items():
            file[name] = array
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.write(path.with_suffix(".weights.h5"), "model.weights.h5")
    return path


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": "model", "layers": list(layers)}}


START = layer("InputLayer", "input", (), batch_shape=[None, 7, 6, 3])


def test_a_sequence_of_convolution_and_normalisation(tmp_path: Path) -> None:
    kernel, mean, beta = draw(3, 3, 3, 4), draw(4, seed=1), draw(4, seed=2)
    gamma, variance = draw(4, seed=3), np.array([0.5, 1.0, 2.0, 4.0], np.float32)
    config = sequential(
        START,
        layer("Conv2D", "stem", (7, 6, 3), strides=[2, 2], padding="same", activation="linear"),
        layer("BatchNormalization", "norm", (4, 3, 4), epsilon=0.01, axis=-1),
    )
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = {f"layers/batch_normalization/vars/{i}": a for i, a in enumerate((gamma, beta, mean, variance))}
    path = write_keras(tmp_path / "m.keras", config, {"layers/conv2d/vars/0": kernel, **weights})
    scale = gamma / np.sqrt(variance + 0.01)
    values = np.linalg.svd(matrix_of(lambda x: conv(x, kernel, 2, "same") * scale, (7, 6, 3)), compute_uv=False)
    report = inspect(path)
    run = report["stem + norm"].quantities
    assert run["sigma_max"] == pytest.approx(values[0], rel=1e-6)
    assert run["sigma_min"] == pytest.approx(values[-1], rel=1e-5)
    assert values[0] * (1 - 1e-7) <= report.certificate.upper <= values[0] * 1.05  # type: ignore[union-attr]
    row = report["stem"]
    assert (row.geometry["image"], row.geometry["padding"]) == ((7, 6), ((1, 1), (0, 1)))
    # The same as a whole model in HDF5, whose weights have names.
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file["model_weights/stem/stem/kernel:0"] = kernel
        for name, array in zip(names, (gamma, beta, mean, variance), strict=True):
            file[f"model_weights/norm/norm/{name}:0"] = array
    assert inspect(tmp_path / "m.h5")["stem + norm"].quantities == run


@pytest.mark.parametrize(("padding", "stride", "taps"), [("same", 2, 3), ("valid", 3, 2), ("valid", 2, 3)])
def test_a_transposed_convolution_is_the_transpose(padding: str, stride: int, taps: int, tmp_path: Path) -> None:
    kernel = draw(taps, taps, 2, 3)  # (*kernel, c_out, c_in)
    config = sequential(START, layer("Conv2DTranspose", "up", (7, 6, 3), strides=[stride] * 2, padding=padding))
    path = write_keras(tmp_path / "m.keras", config, {"layers/conv2d_transpose/vars/0": kernel})
    sizes = [n * stride + (max(taps - stride, 0) if padding == "valid" else 0) for n in (7, 6)]
    forward = matrix_of(lambda x: conv(x, kernel, stride, padding), (*sizes, 2))
    assert forward.shape[0] == 7 * 6 * 3
    found = inspect(path, measures=["sigma_max"])["up"]
    assert found.quantities["sigma_max"] == pytest.approx(np.linalg.norm(forward, 2), rel=1e-6)
    assert (found.geometry["image"], found.geometry["output"]) == ((7, 6), tuple(sizes))


@pytest.mark.parametrize(("padding", "stride", "dilation"), [("same", 2, 1), ("valid", 1, 2), ("same", 1, 2)])
def test_filters_of_each_channel_alone(padding: str, stride: int, dilation: int, tmp_path: Path) -> None:
    kernel = draw(3, 2, 3, 2)  # (*kernel, c_in, filters of each channel)
    options = {"strides": [stride] * 2, "padding": padding, "dilation_rate": [dilation] * 2}
    config = sequential(START, layer("DepthwiseConv2D", "deep", (7, 6, 3), depth_multiplier=2, **options))
    path = write_keras(tmp_path / "m.keras", config, {"layers/depthwise_conv2d/vars/0": kernel})
    spread = np.zeros((2 * dilation + 1, dilation + 1, 3, 2))
    spread[::dilation, ::dilation] = kernel

    def apply(x: Array) -> Array:
        return np.concatenate([conv(x[:, :, c : c + 1], spread[:, :, c : c + 1], stride, padding) for c in range(3)], 2)

    values = np.linalg.svd(matrix_of(apply, (7, 6, 3)), compute_uv=False)
    found = inspect(path)["deep"]
    assert found.geometry["groups"] == 3
    assert found.quantities["sigma_max"] == pytest.approx(values[0], rel=1e-6)
    assert found.quantities["sigma_min"] == pytest.approx(values[-1], rel=1e-5)
    assert found.quantities["stable_rank"] == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=1e-6)


def test_a_graph_with_branches_and_layers_of_parts(tmp_path: Path) -> None:
    deep, mixing, dense = 0.3 * draw(3, 3, 3, 2), 0.3 * draw(1, 1, 6, 3), draw(3, 2)
    layers = [
        {**START, "name": "input", "inbound_nodes": []},
        {
            **layer("SeparableConv2D", "branch", (7, 6, 3), padding="same", activation="relu"),
            "inbound_nodes": [{"args": [tensor("input")], "kwargs": {}}],
        },
        {**layer("Add", "add", ()), "inbound_nodes": [{"args": [[tensor("input"), tensor("branch")]], "kwargs": {}}]},
        {
            **layer("MaxPooling2D", "pool", (), pool_size=[3, 3], strides=[2, 2], padding="same"),
            "inbound_nodes": [{"args": [tensor("add")], "kwargs": {}}],
        },
        {**layer("GlobalAveragePooling2D", "mean", ()), "inbound_nodes": [{"args": [tensor("pool")], "kwargs": {}}]},
        {**layer("Dense", "head", (3,), activation="softmax"), "inbound_nodes": [[["mean", 0, 0, {}]]]},
    ]
    config = {"class_name": "Functional", "config": {"layers": layers, "output_layers": [["head", 0, 0]]}}
    weights = {"layers/separable_conv2d/vars/0": deep, "layers/separable_conv2d/vars/1": mixing}
    path = write_keras(tmp_path / "m.keras", config, {**weights, "layers/dense/vars/0": dense})
    report = inspect(path, measures=["sigma_max"])

    def branch(x: Array) -> Array:
        parts = [conv(x[:, :, c : c + 1], deep[:, :, c : c + 1], 1, "same") for c in range(3)]
        return conv(np.concatenate(parts, 2), mixing, 1, "valid")

    exact = float(np.linalg.norm(matrix_of(branch, (7, 6, 3)), 2))
    assert report["branch depthwise + branch"].quantities["sigma_max"] == pytest.approx(exact, rel=1e-6)
    by_hand = (1 + exact) * 2.0 / np.sqrt(12.0) * np.linalg.norm(dense, 2) * 0.5
    assert report.certificate.upper == pytest.approx(by_hand, rel=1e-6)  # type: ignore[union-attr]


def test_weights_alone_have_a_known_layout(tmp_path: Path) -> None:
    kernel = draw(3, 3, 2, 4)
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = kernel
        file["optimizer/vars/1"] = kernel
        file["link"] = h5py.ExternalLink("/etc/passwd", "/")
    weights = read_keras(tmp_path / "m.weights.h5")
    assert isinstance(weights, Weights)
    assert weights.unread["link"] == "a link, which is not followed"
    assert weights.unread["optimizer/vars/1"] == "part of an optimizer's state"
    report = inspect(tmp_path / "m.weights.h5", image=(6, 5), measures=["sigma_max"])
    exact = np.linalg.norm(matrix_of(lambda x: conv(x, kernel, 1, "same"), (6, 5, 2)), 2)
    assert report["layers/conv2d/vars/0"].quantities["sigma_max"] == pytest.approx(exact, rel=1e-6)
    assert "image" in report.layers[0].assumed


def test_hostile_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    for content in (b"", b"PK\x03\x04" + bytes(30)):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"m\.keras"):
            read_keras(path)
    with pytest.raises(WeightsError, match="which only its own code can build"):
        read_keras(write_keras(path, {"class_name": "MyModel", "config": {}}, {}))
    odd = sequential(START, layer("MyLayer", "odd", (7, 6, 3)))
    certificate = inspect(write_keras(path, odd, {})).certificate
    assert certificate is not None
    assert certificate.reasons == ("odd: MyLayer: no Lipschitz constant is known of it",)
