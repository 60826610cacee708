"""`convla inspect` and `convla initialize` on files: a trained network, ResNet18's shapes, settings, and bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla import ConvOperator, convolutional_similarity, network_similarity
from convla.cli import run
from convla.networks.inspection import inspect
from convla.networks.kernels import initialize_file, split_kernels
from convla.networks.measures import columns_of
from convla.networks.settings import LayerSettings, read_settings
from convla.networks.weights import read_weights, write_weights
from convla.similarity.orthogonality import kernel_orthogonality, ocnn_residual


def model() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "conv1.weight": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "conv2.weight": rng.standard_normal((6, 2, 3, 3)),
        "wave.weight": rng.standard_normal((2, 1, 5)),
        "fc.weight": rng.standard_normal((10, 6)),
        "steps": np.array(3),
        "index": np.zeros((2, 2, 2), dtype=int),
    }


def resnet18_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            prefix = f"layer{stage}.{block}"
            shapes[f"{prefix}.conv1.weight"] = (width, channels, 3, 3)
            shapes[f"{prefix}.conv2.weight"] = (width, width, 3, 3)
            if channels != width:
                shapes[f"{prefix}.downsample.0.weight"] = (width, channels, 1, 1)
            channels = width
    return shapes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.npz"
    write_weights(path, model())
    return path


class TestInspect:
    @pytest.mark.command
    def test_table_json_and_plot(self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        json_file, picture = tmp_path / "report.json", tmp_path / "report.png"
        assert run(["inspect", str(file), "--image", "8x8", "--json", str(json_file), "--plot", str(picture)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "conv1.weight  4x3x3x3" in out
        assert "no row: steps: 0 axes: a convolution kernel has 3 to 5, (c_out, c_in, *kernel)" in out
        assert "no row: index: dtype int64: a convolution kernel holds floating-point numbers" in out
        report = json.loads(json_file.read_text())
        assert [layer["name"] for layer in report["layers"]] == [
            *("conv1.weight", "conv2.weight", "wave.weight", "fc.weight")
        ]
        assert set(report["others"]) == {"steps", "index"}
        quantities = report["layers"][1]["quantities"]
        assert list(quantities) == [column.name for column in columns_of(None)]
        kernel = model()["conv2.weight"]
        assert quantities["similarity"] == float(convolutional_similarity(kernel))
        assert quantities["scaled_similarity"] == float(convolutional_similarity(kernel, normalized=True)) / 15
        assert report["layers"][1]["seconds"] > 0
        assert picture.read_bytes().startswith(b"\x89PNG")

    def test_settings_of_single_layers(self, file: Path, tmp_path: Path) -> None:
        layers = tmp_path / "layers.toml"
        layers.write_text(
            '["conv*"]\nstride = 2\n["conv2.weight"]\ngroups = 2\npadding = [[1, 0], [2, 2]]\nimage = [5, 6]\n'
        )
        json_file = tmp_path / "report.json"
        arguments = ["inspect", str(file), "--image", "8x8", "--layers", str(layers), "--json", str(json_file)]
        assert run([*arguments, "--padding", "1"]) == 0
        first, second, third, _ = json.loads(json_file.read_text())["layers"]
        common = {"dilation": [1, 1], "boundary": "zero", "transposed": False}
        assert first["geometry"] == {
            "padding": [[1, 1], [1, 1]],
            "stride": [2, 2],
            "groups": 1,
            "image": [8, 8],
            "output": [4, 4],
            **common,
        }
        assert first["assumed"] == ["image", "dilation", "groups", "boundary", "transposed"]
        assert second["geometry"] == {
            "padding": [[1, 0], [2, 2]],
            "stride": [1, 1],
            "groups": 2,
            "image": [5, 6],
            "output": [4, 8],
            **common,
        }
        assert second["assumed"] == ["stride", "dilation", "boundary", "transposed"]
        assert third["geometry"]["stride"] == [1]
        assert first["quantities"]["ocnn_residual"] == float(ocnn_residual(model()["conv1.weight"], stride=2))
        halves = np.split(model()["conv2.weight"], 2)
        expected = sum(float(kernel_orthogonality(half)) for half in halves)
        assert second["quantities"]["kernel_orthogonality"] == pytest.approx(expected, rel=1e-14)

    def test_what_is_not_defined_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "model.npz"
        write_weights(
            path, {"pruned": np.zeros((2, 1, 3)), "one": np.ones((1, 1, 3)), "bad": np.full((2, 1, 3), np.nan)}
        )
        assert run(["inspect", str(path), "--image", "8"]) == 0
        out = capsys.readouterr().out
        assert "pruned: 2 of 2 filters are dead" in out
        assert "pruned: per pair, scaled: fewer than two live filters have no pairs, got 0" in out
        assert "one: coherence: no group has two live filters" in out
        assert "no row: bad: NaN or infinity in it" in out

    def test_what_is_no_row_is_told_by_its_reason(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        biases = {f"layer{number}.bias": np.ones(2) for number in range(1, 6)}
        write_weights(tmp_path / "model.npz", {"conv": np.ones((2, 1, 3)), "steps": np.ones(()), **biases})
        assert run(["inspect", str(tmp_path / "model.npz"), "--image", "8", "--measures", "similarity"]) == 0
        told = [line for line in capsys.readouterr().out.splitlines() if "no row" in line]
        assert [line.partition(" axes")[0].strip() for line in told] == [
            "no row: steps: 0",
            "no row: layer1.bias, layer2.bias, layer3.bias, ... 5 in all: 1",
        ]

    def test_no_kernel_at_all(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "model.npz"
        write_weights(path, {"table": np.ones((2, 2))})
        assert run(["inspect", str(path), "--image", "8"]) == 0
        assert "no layer" in capsys.readouterr().out.replace("\n", " ")
        assert run(["inspect", str(path), "--image", "8", "--plot", str(tmp_path / "a.png")]) == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{file}", "--image", "8xx8"], "--image must be sizes such as 32x32, got '8xx8'"),
            (["{file}", "--image", "0x8"], "--image must be sizes such as 32x32, got '0x8'"),
            (["{file}"], "layer conv1.weight: image must be given, without the channels"),
            (["{file}.xyz", "--image", "8x8"], "the name must end in one of .npz, .safetensors, .pt, .pth, .onnx"),
            (["{folder}/none.npz", "--image", "8x8"], "convla: {folder}/none.npz: No such file or directory"),
            (["{folder}/broken.npz", "--image", "8x8"], "not a readable .npz file: File is not a zip file"),
            (["{file}", "--image", "8x8", "--padding", "most"], "layer conv1.weight: padding must be one of"),
            (["{file}", "--image", "8x8", "--padding", "-1"], "layer conv1.weight: padding must be at least 0, got -1"),
            (["{file}", "--image", "8x8", "--stride", "0"], "layer conv1.weight: stride must be at least 1"),
            (["{file}", "--image", "8x8", "--groups", "3"], "layer conv1.weight: "),
            (["{file}", "--image", "2x2", "--padding", "valid"], "the kernel must fit in the padded image"),
            (["{file}", "--image", "8x8", "--layers", "{folder}/broken.toml"], "broken.toml: not a TOML file"),
            (["{file}", "--image", "8x8", "--layers", "{folder}/wrong.toml"], "[conv1] must be a table with the keys"),
            (["{file}", "--image", "8x8", "--json", "{folder}/none/a.json"], "--json"),
            (["{file}", "--image", "8x8", "--plot", "{folder}/none/a.png"], "--plot"),
        ],
    )
    def test_one_line_and_code_2(
        self, arguments: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = file.parent
        (folder / "broken.npz").write_bytes(b"PK but no more")
        (folder / "broken.toml").write_text("[conv1\n")
        (folder / "wrong.toml").write_text("[conv1]\nstrides = 2\n")
        filled = [argument.format(file=file, folder=folder) for argument in arguments]
        assert run(["inspect", *filled]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert message.format(folder=folder) in err

    def test_ctrl_c_says_so(
        self, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("convla.cli.inspections.Plan.run", interrupted)
        assert run(["inspect", str(file), "--image", "8x8"]) == 130
        assert capsys.readouterr().err == "convla: interrupted\n"


def test_patterns_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "layers.toml"
    path.write_text('["*"]\nstride = 2\n["b.*"]\nstride = 3\n')
    settings = read_settings(path, LayerSettings())
    kernels = {name: np.ones((2, 1, 3)) for name in ("a.weight", "b.weight")}
    report = inspect(kernels, image=(8,), settings=settings)
    assert [layer.geometry["stride"] for layer in report.layers] == [(2,), (3,)]


def test_split_kernels_keeps_order_and_says_why() -> None:
    kernels, others = split_kernels({**model(), "empty": np.zeros((2, 0, 3))})
    assert list(kernels) == ["conv1.weight", "conv2.weight", "wave.weight"]
    assert others["empty"] == "an empty axis in shape (2, 0, 3)"


class TestInitialize:
    def test_kernels_move_and_the_rest_is_copied(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = tmp_path / "out.safetensors"
        assert run(["initialize", str(file), str(target), "--iterations", "30", "--keep-norms"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.startswith("3 layers, 30 steps, similarity ")
        before, after = model(), read_weights(target)
        assert set(after) == set(before)
        for name in ("fc.weight", "steps", "index"):
            assert np.array_equal(after[name], before[name])
        kernels = [split_kernels(arrays).kernels for arrays in (before, after)]
        values = [network_similarity(k, normalized=True).layers for k in kernels]
        assert all(values[1][name] < values[0][name] for name in values[0])
        for name, kernel in kernels[1].items():
            assert kernel.dtype == before[name].dtype

    def test_going_on_from_a_state(self, file: Path, tmp_path: Path) -> None:
        whole, parts, state = (tmp_path / name for name in ("whole.npz", "parts.npz", "state.npz"))
        assert run(["initialize", str(file), str(whole), "--iterations", "9"]) == 0
        for count in ("4", "9"):
            assert run(["initialize", str(file), str(parts), "--iterations", count, "--state", str(state)]) == 0
        for name, array in read_weights(whole).items():
            assert np.array_equal(read_weights(parts)[name], array)

    def test_an_interruption_keeps_the_state(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target, state = tmp_path / "out.npz", tmp_path / "state.npz"

        def interrupted(*arguments: Any, **options: Any) -> None:
            def stop(now: Any) -> None:
                if now.iteration == 3:
                    raise KeyboardInterrupt

            initialize_file(*arguments, **{**options, "progress": stop})

        monkeypatch.setattr("convla.cli.initialize.initialize_file", interrupted)
        options = ["--iterations", "8", "--state", str(state), "--save-every", "1"]
        assert run(["initialize", str(file), str(target), *options]) == 130
        assert "the same command goes on from" in capsys.readouterr().err
        assert not target.exists()
        assert int(read_weights(state)["iteration"]) == 3

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{file}", "{folder}/out.npy"], "the name must end in one of"),
            (["{file}", "{folder}/none/out.npz"], "OUT "),
            (["{folder}/linear.npz", "{folder}/out.npz"], "holds no convolution kernel among its 1 arrays"),
            (["{file}", "{folder}/out.npz", "--iterations", "-1"], "iterations must be at least 0"),
            (["{file}", "{folder}/out.npz", "--save-every", "0"], "save_every must be at least 1"),
            (["{file}", "{folder}/out.npz", "--learning-rate", "0"], "learning_rate must be positive"),
            (["{file}", "{folder}/out.npz", "--state", "{folder}/linear.npz"], "not the state of an initialization"),
        ],
    )
    def test_one_line_and_code_2(
        self, arguments: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = file.parent
        write_weights(folder / "linear.npz", {"fc": np.ones((2, 2))})
        filled = [argument.format(file=file, folder=folder) for argument in arguments]
        assert run(["initialize", *filled, *([] if "--iterations" in filled else ["--iterations", "1"])]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert message in err


@pytest.mark.torch
class TestNetworksOfPyTorch:
    def test_a_trained_network(self, tmp_path: Path) -> None:
        import torch

        torch.manual_seed(0)
        bars = torch.zeros(64, 1, 8, 8)
        for i in range(64):  # horizontal and vertical bars: learnt in a few steps
            row, upright = i % 8, i % 2
            bars[i, 0, :, row] = float(upright)
            bars[i, 0, row, :] += 1.0 - upright
        labels = torch.arange(64) % 2
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(4, 6, 3, stride=2, padding=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(96, 2),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(bars), labels)
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < 0.1
        path, json_file = tmp_path / "trained.pt", tmp_path / "report.json"
        torch.save({"state_dict": network.state_dict(), "epoch": 60}, path)
        assert run(["inspect", str(path), "--image", "8x8", "--json", str(json_file)]) == 0
        report = json.loads(json_file.read_text())
        assert [layer["name"] for layer in report["layers"]] == [f"state_dict.{i}.weight" for i in (0, 2, 5)]
        for index, layer in zip((0, 2), report["layers"], strict=False):
            kernel = network[index].weight.detach().double()
            total = sum(
                float((torch.nn.functional.conv2d(kernel[i][:, None], kernel[j][:, None], padding=2) ** 2).sum())
                for i in range(len(kernel))
                for j in range(i)
            )
            assert layer["quantities"]["similarity"] == pytest.approx(total, rel=1e-6)

    @pytest.mark.command
    def test_the_shapes_of_resnet18(self, tmp_path: Path) -> None:
        import torch

        torch.manual_seed(0)
        path, json_file = tmp_path / "resnet18.pth", tmp_path / "report.json"
        shapes = resnet18_shapes()
        state = {name: torch.nn.init.kaiming_normal_(torch.empty(shape)) for name, shape in shapes.items()}
        assert len(state) == 20
        state["fc.weight"] = torch.zeros(1000, 512)
        torch.save(state, path)
        arguments = ["inspect", str(path), "--image", "56x56", "--measures", "similarity,orthogonality"]
        assert run([*arguments, "--json", str(json_file)]) == 0
        report = json.loads(json_file.read_text())
        *layers, last = report["layers"]
        assert {layer["name"]: tuple(layer["shape"]) for layer in layers} == shapes
        assert (last["name"], last["kind"], report["others"]) == ("fc.weight", "linear", {})
        for layer in layers:
            assert all(value is not None for value in layer["quantities"].values())
            # Two random filters of many channels have the average similarity of 1; see the documentation.
            assert layer["quantities"]["scaled_similarity"] == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(
    "settings",
    [
        LayerSettings(),
        LayerSettings(padding="valid"),
        LayerSettings(padding=1, stride=2),
        LayerSettings(groups=2),
    ],
    ids=str,
)
def test_the_singular_values_are_those_of_the_written_out_matrix(settings: LayerSettings) -> None:
    rng = np.random.default_rng(5)
    kernel = rng.standard_normal((4, 4 // settings.groups, 3, 3))
    report = inspect({"conv": kernel}, image=(7, 6), default=settings)
    (layer,) = report.layers
    options = {"padding": settings.padding, "stride": settings.stride, "groups": settings.groups}
    values = np.linalg.svd(ConvOperator(kernel, (7, 6), **options).to_dense(), compute_uv=False)
    found = layer.quantities
    assert found["sigma_max"] == pytest.approx(values[0], rel=1e-9)
    assert found["at_least"] <= values[0] <= found["at_most"]
    assert found["sigma_min"] == pytest.approx(values[-1], rel=1e-9, abs=1e-13 * values[0])
    assert found["condition"] == pytest.approx(values[0] / values[-1], rel=1e-8)


def test_what_is_not_defined_or_too_large_is_said() -> None:
    rng = np.random.default_rng(2)
    arrays = {"large": rng.standard_normal((8, 8, 3, 3)), "zero": np.zeros((2, 2, 3, 3))}
    report = inspect(arrays, image=(64, 64), settings=[("zero", LayerSettings(image=(4, 4)))])
    large, zero = report.layers
    assert large.status["sigma_min"] == "not converged"  # a bound from above, and no more
    assert 0.0 < large.quantities["sigma_min"] < large.quantities["sigma_max"]
    assert zero.quantities["sigma_max"] == 0.0
    assert zero.quantities["condition"] == np.inf
    assert zero.deficiency == 32
    assert any("rank deficient: 32 of 32 singular values are zero" in note for note in zero.notes)


def test_without_spectra_only_the_kernels_are_measured() -> None:
    report = inspect({"conv": np.ones((2, 1, 3))}, image=(8,), measures=("similarity",))
    assert list(report.layers[0].quantities) == ["similarity", "scaled_similarity"]
