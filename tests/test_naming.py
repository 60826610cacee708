"""Which arrays are kernels, in checkpoints as they are written; and initialising one without a bit changed besides."""

from __future__ import annotations

import json
import os
import pty
import struct
import subprocess
import sys
import zipfile
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any

import numpy as np
import pytest

from convla import ConvOperator, __version__
from convla.cli import run
from convla.errors import WeightsError
from convla.networks.inspection import inspect
from convla.networks.kernels import choose_kernels, initialize_file, split_kernels
from convla.networks.parametrizations import assemble
from convla.networks.settings import LayerSettings, doubts
from convla.networks.weights import Weights, read_model, read_weights, write_weights


def ones(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape)


NO_KERNELS = {
    "optimizer.state.0.exp_avg": ones(4, 3, 3, 3),
    "optimizer_state_dict.state.3.exp_avg_sq": ones(4, 3, 3, 3),
    "opt.state.12.momentum_buffer": ones(4, 3, 3, 3),
    "mine.state.0.anything": ones(4, 3, 3, 3),
    "norm1.weight": ones(4, 8, 8),
    "blocks.0.ln.weight": ones(4, 8, 8),
    "encoder.pos_embedding": ones(1, 197, 16),
    "pos_embed": ones(1, 16, 14, 14),
    "cls_token": ones(1, 1, 16),
    "class_token": ones(1, 1, 16),
    "position_embeddings.weight": ones(1, 9, 16),
    "block.layer_scale": ones(16, 1, 1),
    "attn.logit_scale": ones(4, 1, 1),
    "block.gamma": ones(1, 1, 1, 16),
    "conv.bias": ones(1, 4, 1, 1),
    "relative_coords_table": ones(1, 15, 15, 2),
    "bilinear.weight": ones(3, 4, 5),
    "attn_mask": ones(4, 9, 9),
}


def test_what_is_no_layer_has_no_row_and_a_reason() -> None:
    arrays = {**NO_KERNELS, "patch_embed.proj.weight": ones(8, 3, 4, 4), "norm_conv.weight": ones(4, 2, 3)}
    kernels, others = split_kernels(arrays)
    assert list(kernels) == ["patch_embed.proj.weight", "norm_conv.weight"]
    assert set(others) == set(NO_KERNELS)
    assert all(others.values())


def test_a_scale_is_known_by_its_bias_and_an_average_by_its_twin() -> None:
    arrays = {
        "a.weight": ones(4, 5, 5),
        "a.bias": ones(4, 5, 5),
        "model.c.weight": ones(4, 2, 3),
        "model_ema.module.c.weight": ones(4, 2, 3),
        "ema.d.weight": ones(4, 2, 3),
    }
    kernels, others = split_kernels(arrays)
    assert list(kernels) == ["model.c.weight", "ema.d.weight"]
    assert "its bias has the same shape" in others["a.weight"]
    assert others["model_ema.module.c.weight"] == "an average of model.c.weight"


@pytest.mark.torch
class TestParametrizations:
    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("way", ["weight_norm", "old weight_norm", "spectral_norm", "old spectral_norm", "prune"])
    def test_the_weight_is_that_which_the_layer_uses(self, way: str, transposed: bool) -> None:
        torch = pytest.importorskip("torch")
        import warnings

        from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

        torch.manual_seed(0)
        layer = (torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d)(3, 5, 3)
        ways = {
            "weight_norm": parametrizations.weight_norm,
            "old weight_norm": weight_norm,
            "spectral_norm": parametrizations.spectral_norm,
            "old spectral_norm": spectral_norm,
            "prune": lambda module: prune.l1_unstructured(module, "weight", 0.5),
        }
        with warnings.catch_warnings(action="ignore"):
            network = torch.nn.Sequential(ways[way](layer))
            network(torch.randn(2, 3, 8, 8))
        network.eval()
        network(torch.randn(2, 3, 8, 8))
        state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        (name,), made = split_kernels(state).kernels, assemble(state)
        assert name == "0.weight"
        np.testing.assert_allclose(made[name].array, network[0].weight.detach().numpy(), rtol=2e-6, atol=1e-8)
        assert choose_kernels(Weights(state)).kernels == {}


@pytest.mark.torch
class TestInitializeACheckpoint:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            torch.nn.LayerNorm([8, 6, 6]),
            torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(8, 4, 3)),
        )
        network.register_parameter("pos_embed", torch.nn.Parameter(torch.randn(1, 16, 8)))
        optimizer = torch.optim.Adam(network.parameters(), lr=0.3)
        network(torch.randn(2, 3, 6, 6)).sum().backward()
        optimizer.step()
        path = tmp_path / "checkpoint.pt"
        half = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        half["0.weight"] = half["0.weight"].half()
        torch.save({"model": half, "optimizer": optimizer.state_dict(), "epoch": 7, "args": {"lr": 0.3}}, path)
        return path

    def test_only_the_kernel_changes(
        self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch = pytest.importorskip("torch")
        target = tmp_path / "out.pt"
        assert run(["initialize", str(checkpoint), str(target), "--iterations", "4"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("1 layer, 4 steps")
        assert "changed: model.0.weight 8x3x3x3" in out
        old, new = (torch.load(path) for path in (checkpoint, target))
        assert list(new) == list(old)
        assert (new["epoch"], new["args"]) == (7, {"lr": 0.3})
        assert new["optimizer"]["param_groups"] == old["optimizer"]["param_groups"]
        for number, slots in old["optimizer"]["state"].items():
            for slot, tensor in slots.items():
                assert torch.equal(new["optimizer"]["state"][number][slot], tensor)
        changed = [name for name, tensor in old["model"].items() if not torch.equal(new["model"][name], tensor)]
        assert changed == ["0.weight"]
        assert all(new["model"][name].dtype == tensor.dtype for name, tensor in old["model"].items())
        with zipfile.ZipFile(checkpoint) as before, zipfile.ZipFile(target) as after:
            differing = [name for name in before.namelist() if before.read(name) != after.read(name)]
            assert before.namelist() == after.namelist()
        assert len(differing) == 1

    def test_the_user_names_the_kernels(self, checkpoint: Path, tmp_path: Path) -> None:
        target = tmp_path / "out.pt"
        only = ["model.2.*.original1"]
        initialize_file(checkpoint, target, iterations=2, only=only)
        old, new = read_weights(checkpoint), read_weights(target)
        assert [n for n in old if not np.array_equal(old[n], new[n])] == ["model.2.parametrizations.weight.original1"]
        for pattern, message in (("none*", "matches none"), ("model.0.bias", "'model.0.bias' is no kernel: 1 axes")):
            with pytest.raises(ValueError, match=message):
                initialize_file(checkpoint, target, iterations=2, only=[pattern])

    def test_another_format_has_no_place_for_it(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="its format has no place for all that"):
            initialize_file(checkpoint, tmp_path / "out.npz", iterations=1)
        assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_half_precision_stays_half(suffix: str, tmp_path: Path) -> None:
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    arrays = {"conv.weight": ones(4, 3, 3, 3).astype(np.float16), "rest": ones(2, 2).astype(np.float16)}
    write_weights(source, arrays)
    initialize_file(source, target, iterations=3)
    found = read_model(target)
    assert found.dtypes == {"conv.weight": "float16", "rest": "float16"}
    assert np.array_equal(found.arrays["rest"], arrays["rest"].astype(np.float32))
    assert not np.array_equal(found.arrays["conv.weight"], arrays["conv.weight"].astype(np.float32))


def note_of(arrays: dict[str, Any], image: tuple[int, ...], **settings: Any) -> str:
    report = inspect(arrays, image=image, default=LayerSettings(**settings), measures=("similarity", "orthogonality"))
    return " | ".join(report.layers[0].notes)


class TestUses:
    def test_channels_last(self) -> None:
        kernel = ones(6, 5, 3, 3)
        hwio = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
        plain = inspect({"conv": kernel}, image=(7, 6)).layers[0]
        found = inspect({"conv": hwio}, image=(7, 6), default=LayerSettings(layout="hwio")).layers[0]
        assert found.quantities == plain.quantities
        assert "layout = 'hwio'" in note_of({"w": ones(3, 3, 3, 16)}, (8, 8))
        for shape in ((3, 3, 3, 64), (1, 1, 64, 128), (3, 3, 16, 16), (7, 7, 3, 64), (3, 3, 3, 32, 64), (3, 64, 128)):
            assert "layout = 'hwio'" in str(doubts("w", np.empty(shape), LayerSettings())), shape
        for shape in ((64, 3, 7, 7), (64, 32, 3, 3), (128, 64, 1, 1), (4, 3, 3, 3), (3, 3, 3, 3), (64, 32, 5)):
            assert "hwio" not in str(doubts("w", np.empty(shape), LayerSettings())), shape

    def test_depthwise(self) -> None:
        kernel = ones(6, 1, 3, 3)
        assert "a depthwise layer has groups = 6" in note_of({"w": kernel}, (8, 8))
        found, wanted = (
            inspect({"w": kernel}, image=(8, 8), default=LayerSettings(groups=groups)).layers[0]
            for groups in ("depthwise", 6)
        )
        assert found.quantities == wanted.quantities
        keras = np.ascontiguousarray(kernel.reshape(3, 2, 3, 3).transpose(2, 3, 0, 1))  # two filters a channel
        settings = LayerSettings(groups="depthwise", layout="hwio")
        assert (
            inspect({"w": keras}, image=(8, 8), default=settings).layers[0].quantities["similarity"]
            == (wanted.quantities["similarity"])
        )
        with pytest.raises(ValueError, match="needs a kernel of one input channel"):
            inspect({"w": ones(6, 2, 3, 3)}, image=(8, 8), default=LayerSettings(groups="depthwise"))

    @pytest.mark.torch
    @pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 1, 1), (2, 0, 2), (3, 2, 2)])
    def test_transposed(self, stride: int, padding: int, groups: int) -> None:
        torch = pytest.importorskip("torch")
        layer = torch.nn.ConvTranspose2d(
            4, 6, 4, stride=stride, padding=padding, groups=groups, bias=False, dtype=torch.float64
        )
        unit = torch.eye(4 * 5 * 4, dtype=torch.float64).reshape(-1, 4, 5, 4)
        matrix = layer(unit).detach().reshape(len(unit), -1).numpy().T
        values = np.linalg.svd(matrix, compute_uv=False)
        settings = LayerSettings(stride=stride, padding=padding, groups=groups, transposed=True)
        report = inspect({"w": layer.weight.detach().numpy()}, image=(5, 4), default=settings).layers[0]
        assert report.quantities["sigma_max"] == pytest.approx(values[0], rel=1e-8)
        assert report.quantities["sigma_min"] == pytest.approx(values[-1], rel=1e-7)
        assert report.geometry["image"] == (5, 4)
        assert report.geometry["output"] == tuple(layer(torch.zeros(1, 4, 5, 4, dtype=torch.float64)).shape[2:])
        assert "transposed = true" in note_of({"up.deconv.weight": ones(4, 6, 3, 3)}, (8, 8))

    def test_an_image_with_its_channels(self) -> None:
        with pytest.raises(
            ValueError, match=r"image must have at most 2 sizes.*got 3x32x32: give it without the channels"
        ):
            inspect({"w": ones(4, 3, 3, 3)}, image=(3, 32, 32))
        arrays = {"w": ones(4, 3, 3, 3, 3), "v": ones(4, 3, 3, 3)}
        with pytest.raises(ValueError, match="layer v: an image of 3 sizes, 3x8x8, does not fit a kernel of 2 axes"):
            inspect(arrays, image=(3, 8, 8))

    def test_a_pointwise_layer_has_the_singular_values_of_its_matrix(self) -> None:
        kernel = ones(320, 1152, 1, 1)
        found = inspect({"w": kernel}, image=(224, 224)).layers[0].quantities
        values = np.linalg.svd(kernel[:, :, 0, 0], compute_uv=False)
        assert found["sigma_max"] == pytest.approx(values[0], rel=1e-9)
        assert found["sigma_min"] == pytest.approx(values[-1], rel=1e-8)
        padded = ones(3, 2, 1, 1)
        found = inspect({"w": padded}, image=(4, 4), default=LayerSettings(padding=1)).layers[0].quantities
        dense = ConvOperator(padded, (4, 4), padding=1).to_dense()
        assert found["sigma_min"] == pytest.approx(np.linalg.svd(dense, compute_uv=False)[-1], rel=1e-9)

    @pytest.mark.parametrize("share", [0.0, 3e-8, 1e-30])
    def test_dead_filters_are_counted_and_left_out_of_pairs(self, share: float) -> None:
        kernel = ones(5, 3, 3, 3)
        alone = inspect({"w": kernel[1:]}, image=(8, 8), measures=("similarity", "orthogonality")).layers[0]
        kernel[0] *= share
        found = inspect({"w": kernel}, image=(8, 8), measures=("similarity", "orthogonality")).layers[0]
        assert (alone.dead, found.dead) == (0, 1)
        for name in ("scaled_similarity", "mutual_coherence"):
            assert found.quantities[name] == alone.quantities[name]
        assert any("1 of 5 filters are dead" in note for note in found.notes)
        kernel[0] = 1e-5 * ones(5, 3, 3, 3)[0]
        assert inspect({"w": kernel}, image=(8, 8), measures=("similarity", "orthogonality")).layers[0].dead == 0


class TestReport:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        path = tmp_path / "model.npz"
        names = ["features.conv1.weight", "features.conv2.weight"]
        write_weights(path, {name: 1e-7 * ones(4, 4, 3, 3).astype(np.float32) for name in names})
        return path

    def test_the_json_says_what_was_measured(self, model: Path, tmp_path: Path) -> None:
        import hashlib

        path = tmp_path / "a.json"
        assert run(["inspect", str(model), "--image", "8x7", "--json", str(path)]) == 0
        report = json.loads(path.read_text())
        assert report["file"] == str(model)
        assert report["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
        assert (report["schema"], report["complete"]) == ("convla-inspection-1", True)
        assert report["versions"]["convla"] == __version__
        layer = report["layers"][0]
        assert layer["dtype"] == "float32"
        assert set(layer["status"]) == {"sigma_max", "sigma_min"}
        assert (layer["geometry"]["image"], layer["geometry"]["stride"]) == ([8, 7], [1, 1])

    def test_an_interruption_keeps_what_is_done(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from convla.networks import rows

        real, path = rows._described, tmp_path / "a.json"
        seen: list[Any] = []

        def interrupted(layers: Any) -> Any:
            seen.append(layers)
            if len(seen) > 1:
                raise KeyboardInterrupt
            return real(layers)

        monkeypatch.setattr(rows, "_described", interrupted)
        assert run(["inspect", str(model), "--image", "8x7", "--measures", "similarity", "--json", str(path)]) == 130
        out, err = capsys.readouterr()
        assert "features.conv1.weight  4x4x3x3" in out
        assert err == f"convla: interrupted: 1 of 2 rows are done and shown, and in {path}\n"
        report = json.loads(path.read_text())
        assert (len(report["layers"]), report["complete"]) == (1, False)

    @pytest.mark.command
    @pytest.mark.parametrize(
        "width", [20, 80, 400, *(pytest.param(width, marks=pytest.mark.slow) for width in (60, 200))]
    )
    def test_no_number_is_cut_at_any_width(self, width: int, model: Path, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        line = [sys.executable, "-m", "convla", "inspect", str(model), "--image", "8x7", "--json", str(path)]
        ours, theirs = pty.openpty()
        ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        with subprocess.Popen(line, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
            os.close(theirs)
            shown = b""
            while True:
                try:
                    part = os.read(ours, 4096)
                except OSError:  # the other end is closed
                    break
                if not part:
                    break
                shown += part
        os.close(ours)
        assert process.returncode == 0
        rows = shown.decode().replace("\r\n", "\n")
        for layer in json.loads(path.read_text())["layers"]:
            assert layer["name"] in rows
            for value in layer["quantities"].values():
                assert f"{value:.4g}" in rows.split()
        sentences = (str(model), "  features", "  * assumed")
        long = [row for row in rows.splitlines() if len(row) > width and not row.startswith(sentences)]
        assert width < 60 or long == []


def test_one_strange_tensor_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    header = {
        "eight.weight": {"dtype": "F8_E5M2", "shape": [1, 1, 4], "data_offsets": [0, 4]},
        "conv.weight": {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [4, 28]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4) + np.ones(6, "<f4").tobytes())
    assert run(["inspect", str(path), "--image", "8", "--measures", "similarity"]) == 0
    out = capsys.readouterr().out
    assert "conv.weight  2x1x3" in out
    assert "no row: eight.weight: dtype F8_E5M2, which is not read" in out


def test_an_archive_of_few_bytes_is_no_work_for_minutes(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", bytes(10**7))
    assert path.stat().st_size < 1000
    with pytest.raises(WeightsError, match="compressed by the method 12; stored and deflated members are read"):
        read_weights(path)
