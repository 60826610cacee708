"""Weights of known layouts without a graph: Flax, shards, nested checkpoints; and real networks inside packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla import inspect
from convla.errors import WeightsError
from convla.networks.files import read_file
from convla.networks.weights import write_weights

Array = np.ndarray[Any, Any]


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def packed(array: Array, kind: str | None = None) -> Any:
    msgpack = pytest.importorskip("msgpack")
    return msgpack.ExtType(1, msgpack.packb((array.shape, kind or array.dtype.name, array.tobytes())))


def test_a_flax_checkpoint(tmp_path: Path) -> None:
    msgpack = pytest.importorskip("msgpack")
    kernel, dense, scale = draw(3, 3, 2, 4), draw(5, 3), draw(4, seed=1)
    half = (dense.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16, rounded towards zero
    tree = {
        "params": {
            "Conv_0": {"kernel": packed(kernel), "bias": packed(draw(4))},
            "BatchNorm_0": {"scale": packed(scale), "bias": packed(draw(4))},
            "Dense_0": {"kernel": packed(half, "bfloat16")},
        },
        "batch_stats": {"BatchNorm_0": {"mean": packed(draw(4)), "var": packed(np.full(4, 3.0, np.float32))}},
        "step": 3,
    }
    path = tmp_path / "model.msgpack"
    path.write_bytes(msgpack.packb(tree))
    report = inspect(path, image=(6, 5), measures=["sigma_max"])
    rows = {row.name: row for row in report}
    assert list(rows) == ["params.Conv_0.kernel", "params.Dense_0.kernel", "batch_stats.BatchNorm_0"]
    other = np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1)))
    same = inspect({"w": other}, image=(6, 5), measures=["sigma_max"]).layers[0]
    assert rows["params.Conv_0.kernel"].quantities == same.quantities
    cut = (half.astype(np.uint32) << 16).view(np.float32)
    found = rows["params.Dense_0.kernel"]
    assert found.quantities["sigma_max"] == pytest.approx(np.linalg.norm(cut.astype(float), 2), rel=1e-6)
    assert "stored as bfloat16, taken as float32" in found.notes
    factors = np.abs(scale.astype(float)) / np.sqrt(3.0 + 1e-5)
    assert rows["batch_stats.BatchNorm_0"].quantities["sigma_max"] == pytest.approx(factors.max(), rel=1e-12)
    assert report.others["step"] == "no array"
    for content in (b"\xc1", path.read_bytes()[:-30], msgpack.packb({"a": msgpack.ExtType(1, b"x")})):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="not a readable"):
            read_file(path)


def test_shards(tmp_path: Path) -> None:
    arrays = {"a.weight": draw(2, 1, 3), "b.weight": draw(3, 2, 3)}
    write_weights(tmp_path / "1.safetensors", {"a.weight": arrays["a.weight"]})
    write_weights(tmp_path / "2.safetensors", {"b.weight": arrays["b.weight"]})
    index = tmp_path / "model.safetensors.index.json"
    places = {"a.weight": "1.safetensors", "b.weight": "2.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found = read_file(index)
    assert all(np.array_equal(found.arrays[name], array) for name, array in arrays.items())  # type: ignore[union-attr]
    for wrong, message in (
        ({"weight_map": {"a": "../1.safetensors"}}, "which is no file beside it"),
        ({"weight_map": {"c.weight": "1.safetensors"}}, "lacks 'c.weight'"),
        ({}, "not an index of shards"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(WeightsError, match=message):
            read_file(index)


def test_one_input_channel_is_noted_in_both_layouts() -> None:
    from convla.networks.settings import LayerSettings

    for kernel, layout in ((draw(6, 1, 3, 3), "oihw"), (draw(3, 3, 1, 6), "hwio")):
        settings = LayerSettings(layout=layout, said=frozenset(("layout",)))  # type: ignore[arg-type]
        row = inspect({"w": kernel}, image=(5, 5), default=settings, measures=["similarity"]).layers[0]
        assert any("one input channel and 6 filters" in note for note in row.notes)


def test_equal_kernels_on_different_images_are_not_one() -> None:
    from convla.networks.settings import LayerSettings

    kernel = draw(2, 2, 1, 1)
    settings = [("b", LayerSettings(image=(4, 4)))]
    report = inspect({"a": kernel, "b": kernel}, image=(3, 3), settings=settings, measures=["stable_rank"])
    once = float((kernel.astype(float) ** 2).sum() / np.linalg.norm(kernel[:, :, 0, 0].astype(float), 2) ** 2)
    found = [row.quantities["stable_rank"] for row in report]
    assert found == pytest.approx([9 * once, 16 * once], rel=1e-6)
