"""Files made to harm, and files damaged at random: one line and exit code 2, soon, and in little memory."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla.cli import run
from convla.errors import WeightsError
from convla.networks.inspection import inspect
from convla.networks.kernels import initialize_file
from convla.networks.plot import plot_inspection
from convla.networks.settings import LayerSettings
from convla.networks.weights import printable, read_weights, write_weights
from tests.damage import damaged

SUFFIXES = [".npz", ".safetensors", pytest.param(".pt", marks=pytest.mark.torch)]


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"conv": rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "b/ü": rng.standard_normal((2, 4, 1))}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_is_found_or_harmless(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    write_weights(path, arrays())
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    messages = []
    for _ in range(200):
        path.write_bytes(damaged(whole, rng))
        try:
            found = read_weights(path)
        except WeightsError as error:
            messages.append(str(error))
        else:
            assert sum(array.nbytes for array in found.values()) <= 2 * len(whole)
    assert len(messages) > 100
    assert all("\n" not in message and len(message) < 400 + len(str(path)) for message in messages)


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ones((2, 1, 3)))
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("a.npy", stream.getvalue())
        archive.writestr("a.npy", stream.getvalue())
    with pytest.raises(WeightsError, match="two arrays of the name 'a'"):
        read_weights(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pipes_and_devices_are_not_opened(suffix: str, tmp_path: Path) -> None:
    pipe, endless = tmp_path / f"pipe{suffix}", tmp_path / f"endless{suffix}"
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    for path in (pipe, endless, tmp_path):
        with pytest.raises(WeightsError, match=r"not a regular file|must end in one of"):
            read_weights(path)
    link = tmp_path / f"link{suffix}"
    write_weights(tmp_path / f"model{suffix}", arrays())
    link.symlink_to(tmp_path / f"model{suffix}")
    assert set(read_weights(link)) == set(arrays())


@pytest.mark.torch
class TestTorch:
    @pytest.mark.command
    def test_mappings_that_hold_each_other(self, tmp_path: Path) -> None:
        import torch

        path = tmp_path / "model.pt"
        loop: dict[str, Any] = {"w": torch.ones(2, 1, 3)}
        loop |= {f"s{i}": loop for i in range(50)}
        torch.save(loop, path)
        with pytest.raises(WeightsError, match="nests mappings more than 8 deep"):
            read_weights(path)
        fan: Any = {}
        for _ in range(7):  # 30^7 ways through 210 entries
            fan = {f"s{i}": fan for i in range(30)}
        torch.save(fan, path)
        with pytest.raises(WeightsError, match="holds more than 1000000 entries"):
            read_weights(path)

    def test_two_keys_of_one_name(self, tmp_path: Path) -> None:
        import torch

        path = tmp_path / "model.pt"
        torch.save({1: torch.ones(2), "1": torch.zeros(2)}, path)
        with pytest.raises(WeightsError, match="two arrays of the name '1'"):
            read_weights(path)

    def test_a_compressed_bomb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        plain, bomb = tmp_path / "plain.pt", tmp_path / "bomb.pt"
        torch.save({"a": torch.zeros(10**6)}, plain)
        with zipfile.ZipFile(plain) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        assert bomb.stat().st_size < 50_000
        monkeypatch.setattr("convla.networks.archives.available_memory", lambda _: 10**6)
        with pytest.raises(WeightsError, match="more than the 1000000 bytes of free memory"):
            read_weights(bomb)

    def test_a_pickle_that_runs_a_command(self, tmp_path: Path) -> None:
        import torch

        path, trace = tmp_path / "model.pt", tmp_path / "trace"

        class Malice:
            def __reduce__(self) -> Any:
                return os.system, (f"touch {trace}",)

        torch.save({"conv": Malice()}, path)
        with pytest.raises(WeightsError, match=r"never loaded; save a network as torch\.save") as caught:
            read_weights(path)
        assert "weights_only" not in str(caught.value)  # no advice to load it after all
        assert not trace.exists()

    def test_the_format_before_pytorch_1_6(self, tmp_path: Path) -> None:
        import torch

        path = tmp_path / "model.pt"
        torch.save({"a": torch.ones(2, 1, 3)}, path, _use_new_zipfile_serialization=False)
        assert read_weights(path)["a"].shape == (2, 1, 3)


NAMES = ["a\x1b[31mred\nnew", "$x_{$", "[bold]x", "名前", "\ud800"]


def test_names_do_not_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("a\x1b[31m\n\ud800ü") == "a\\x1b[31m\\n\\ud800ü"
    report = inspect(dict.fromkeys(NAMES, np.ones((2, 1, 3))), image=(8,), measures=("similarity",))
    plot_inspection(report, tmp_path / "a.png")
    path, json_file = tmp_path / "model.npz", tmp_path / "a.json"
    np.savez(path, **dict.fromkeys(NAMES[:4], np.ones((2, 1, 3))))
    assert run(["inspect", str(path), "--image", "8", "--measures", "similarity", "--json", str(json_file)]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out
    assert "[bold]x" in out
    assert "a\\x1b[31mred\\nnew" in out
    assert [layer["name"] for layer in json.loads(json_file.read_text())["layers"]] == NAMES[:4]
    assert run(["inspect", str(tmp_path / "\x1b[31m.npz"), "--image", "8"]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.count("\n") == 1


@pytest.mark.command
def test_numbers_that_leave_the_range(tmp_path: Path) -> None:
    path, json_file, picture = (tmp_path / name for name in ("model.npz", "a.json", "a.svg"))
    write_weights(path, {"huge": np.full((2, 1, 3, 3), 1e200), "tiny": np.full((2, 1, 3, 3), 5e-324)})
    arguments = ["inspect", str(path), "--image", "8x8", "--json", str(json_file), "--plot", str(picture)]
    assert run(arguments) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    huge, _ = json.loads(json_file.read_text(), parse_constant=refuse)["layers"]
    assert huge["quantities"]["similarity"] == "Infinity"
    assert huge["quantities"]["spectral_isometry"] == "Infinity"
    assert huge["quantities"]["scaled_similarity"] == pytest.approx(4.456790123, rel=1e-9)
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "999999999999999"], "more than the"),
        (["--image", "9" * 5000], "Exceeds the limit"),
        (["--image", "8x8", "--layers", "{folder}/deep.toml"], "deep.toml: not a TOML file"),
        (["--image", "8x8", "--layers", "{folder}/image.toml"], "[*] image must be a sequence of integers, got 8"),
        (["--image", "8x8", "--layers", "{folder}/other.toml"], "settings for 'other' match none of the 2 arrays"),
        (["--image", "8x8", "--plot", "{folder}/a.xyz"], "--plot must end in one of .png, .svg, .pdf"),
        (["--image", "8x8", "--plot", ""], "--plot"),
        (["--image", "8x8", "--json", ""], "--json"),
    ],
)
def test_options_are_refused_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep.toml").write_text("x = " + "[" * 100_000)
    (tmp_path / "image.toml").write_text('["*"]\nimage = 8\n')
    (tmp_path / "other.toml").write_text('["other"]\nstride = 2\n')
    write_weights(tmp_path / "model.npz", arrays())
    filled = [option.format(folder=tmp_path) for option in options]
    assert run(["inspect", str(tmp_path / "model.npz"), *filled]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_strides_along_each_axis() -> None:
    kernel = arrays()["conv"]
    (layer,) = inspect({"conv": kernel}, image=(9, 8), default=LayerSettings(stride=(2, 1))).layers
    assert layer.notes == ()
    with pytest.raises(ValueError, match="layer conv: stride must be an integer or 2 integers"):
        inspect({"conv": kernel}, image=(9, 8), default=LayerSettings(stride=(2, 1, 1)))


class TestInitialize:
    def test_a_target_of_no_format_is_refused_before_the_work(self, tmp_path: Path) -> None:
        source = tmp_path / "model.npz"
        write_weights(source, arrays())
        steps: list[Any] = []
        for target, state in (("out.h5", "state.npz"), ("out.npz", "state.bin")):
            with pytest.raises(WeightsError, match="must end in one of"):
                initialize_file(source, tmp_path / target, state=tmp_path / state, progress=steps.append)
        assert steps == []

    def test_what_a_format_cannot_hold(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="cannot hold these arrays"):
            write_weights(tmp_path / "model.safetensors", {"a": np.zeros(2, np.longdouble)})
        assert list(tmp_path.iterdir()) == []

    def test_a_state_of_other_shapes(self, tmp_path: Path) -> None:
        source, state = tmp_path / "model.npz", tmp_path / "state.npz"
        write_weights(source, {"conv": np.ones((2, 1, 3))})
        initialize_file(source, tmp_path / "out.npz", iterations=1, state=state)
        write_weights(source, {"conv": np.ones((2, 1, 5))})
        with pytest.raises(ValueError, match="layer conv of kernels and start must have the same shape"):
            initialize_file(source, tmp_path / "out.npz", iterations=2, state=state)


@pytest.mark.command
class TestStreams:
    """The process itself, with standard streams that are closed, full or left early."""

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        path = tmp_path / "model.npz"
        write_weights(path, arrays())
        return path

    # A process takes seconds: each command and each redirection is tried, and all pairs of them in the slow tests.
    @pytest.mark.parametrize(
        ("command", "redirection"),
        [
            pytest.param(
                command,
                redirection,
                id=f"{command.split()[0]} {redirection}",
                marks=[] if (i, j) in ((0, 0), (2, 0), (1, 1), (2, 2), (0, 3)) else [pytest.mark.slow],
            )
            for i, command in enumerate(
                (
                    "inspect {model} --image 8x8 --measures similarity --json {model}.json",
                    "initialize {model} {model}.out.npz --iterations 2",
                    "reproduce table1 --repetitions 8 --output {model}.results --json {model}.json",
                )
            )
            for j, redirection in enumerate(("| true", ">&-", "> /dev/full", ">&- 2>&-"))
        ],
    )
    def test_no_traceback(self, command: str, redirection: str, model: Path) -> None:
        line = f"{sys.executable} -m convla {command.format(model=model)} {redirection}"
        # Held back by a buffer, as usual, whatever the tests themselves are run with.
        buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False, env=buffered
        )
        assert done.stderr.count("\n") <= 1
        assert "Traceback" not in done.stderr
        if "/dev/full" in redirection:
            assert "No space left on device" in done.stderr
        else:
            assert done.stderr == ""
        # What was asked for as a file is there, whoever read the table.
        assert "--json" not in command or Path(f"{model}.json").exists()

    def test_errors_do_not_go_to_standard_output(self, model: Path) -> None:
        line = f"{sys.executable} -m convla inspect {model}.npy --image 8 2>&-"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout) == (2, "")

    def test_a_results_folder_without_a_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["reproduce", "table1", "--output", ""]) == 2
        assert "--output" in capsys.readouterr().err
