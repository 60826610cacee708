"""README and the pages of docs/ as a reader takes them: what they type is a command, runs, and prints what they say."""

from __future__ import annotations

import concurrent.futures
import doctest
import re
import shlex
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer

import convla
from convla.cli import run
from convla.cli.app import COMMANDS, app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

CALL = re.compile(r"^(?:\$ )?(?:.* && )?(?:\.venv/bin/)?convla ([^#]+?)(?: > (\S+))?(?:\s+#.*)?$")
"""A line that calls the command: its arguments, and the file that its output goes to."""

ELSEWHERE = {
    r"verify( CSM-6| --max-examples .*)?": "tests/test_ledger.py runs every check",
    r"verify --claims .*": "tests/test_verify.py",
    r"reproduce|reproduce figures": "tests/test_reproduce.py, tests/test_figures.py; what is printed is compared below",
    r"train .+": "tests/test_training.py",
    r"study .* --executor .*": "tests/test_pools.py",
    r"doctor": "tests/test_doctor.py",
    r"inspect model\.(keras|safetensors|safetensors\.index\.json|msgpack) ?.*": "tests of the format",
    r"inspect model\.onnx --image 224x224": "tests/test_onnx.py, on a smaller image",
    r"inspect (model\.pt2|model\.onnx --data .*|\*\.onnx .*)": "tests/test_inspect_files.py",
}
"""Commands that are parsed here, and run there."""


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    pattern = rf"^[ ]*```(?:{'|'.join(languages)})\n(.*?)^[ ]*```"
    found = re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return list(map(textwrap.dedent, found))


def calls(page: Path) -> Iterator[tuple[list[str], str | None]]:
    """What a page calls the command with, in order, and where the output goes."""
    for block in blocks(page, "bash", "console", "text"):
        for found in map(CALL.match, block.splitlines()):
            if found and found[1].split()[0] in COMMANDS:
                yield shlex.split(found[1]), found[2]


def test_pages_call_the_command() -> None:
    called = {arguments[0] for page in PAGES for arguments, _ in calls(page)}
    assert called == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_of_a_page_exists(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for arguments, _ in calls(page):
        command = group.get_command(None, arguments[0])
        try:
            command.make_context(arguments[0], arguments[1:])
        except typer.Exit:  # an option that prints something and ends
            assert arguments == ["study", "--example"]


def write_files() -> None:
    """Put what the pages name into the current folder: a small model in each form, and a study."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    from tests.test_onnx import residual

    rng = np.random.default_rng(0)
    weights = {
        "conv1.weight": rng.normal(size=(8, 3, 3, 3)) / 5,
        "conv2.weight": rng.normal(size=(16, 8, 3, 3)) / 10,
        "fc.weight": rng.normal(size=(10, 64)) / 10,
    }
    np.savez("model.npz", **weights)
    few = {key: value[:2, :2] for key, value in weights.items()}  # as these are looked at on larger images
    for name in ("model.pt", "before.pt", "checkpoint.pt"):
        torch.save({key: torch.from_numpy(value) for key, value in few.items()}, name)
    torch.save({key: torch.from_numpy(2 * value) for key, value in few.items()}, "after.pt")
    residual(Path("model.onnx"))
    Path("mine.toml").write_text(blocks(ROOT / "docs" / "studies.md", "toml")[0], encoding="utf-8")


def shown() -> Iterator[tuple[Path, str, str]]:
    """Each command that a page shows with what it prints."""
    for page in PAGES:
        for block in blocks(page, "console"):
            for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, printed = session.partition("\n")
                if printed.strip():
                    yield page, command, printed


SHOWN = list(shown())
COMPARED = {command.removeprefix("convla ") for _, command, _ in SHOWN}


@pytest.mark.command
@pytest.mark.torch
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem in ("README", "getting-started", "inspect-a-model", "studies")]
)
def test_commands_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files()
    for arguments, output in calls(page):
        line = " ".join(arguments)
        if line in COMPARED or any(re.fullmatch(known, line) for known in ELSEWHERE):
            continue
        thresholds = "--warn" in arguments
        assert run(arguments) in ((0, 1) if thresholds else (0,)), f"{arguments}: {capsys.readouterr().err}"
        printed = capsys.readouterr().out
        if output:
            Path(output).write_text(printed, encoding="utf-8")


@pytest.mark.command
@pytest.mark.torch
@pytest.mark.parametrize(("page", "command", "expected"), SHOWN, ids=[command for _, command, _ in SHOWN])
def test_what_a_page_shows_is_printed(
    page: Path,
    command: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # "..." stands for what is left out or changes, such as times, as in a doctest; blanks and ends of lines are alike.
    monkeypatch.chdir(tmp_path)
    write_files()
    assert run(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out
    alike = doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert alike, f"{page.name} shows of `{command}`\n{expected}\nbut it prints\n{printed}"


def test_pages_show_what_is_printed() -> None:
    assert {command for _, command, _ in SHOWN} >= {"convla reproduce", "convla inspect model.npz --image 16x16"}


def _network(torch: Any) -> Any:
    nn = torch.nn
    torch.manual_seed(0)
    block = nn.Sequential(OrderedDict(conv1=nn.Conv2d(4, 4, 3, padding=1)))
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 4, 3, stride=4, padding=1), layer1=nn.Sequential(block), pool=nn.AvgPool2d(4)
    )
    return nn.Sequential(layers | OrderedDict(flat=nn.Flatten(), fc=nn.Linear(16, 3)))


def _of_a_network(torch: Any) -> dict[str, Any]:
    return {"network": _network(torch), "example": torch.zeros(1, 3, 32, 32)}


def _of_a_training(torch: Any) -> dict[str, Any]:
    network = _network(torch)
    layer = torch.nn.Conv2d(2, 2, 3, padding=1)
    return {
        "convla": convla,
        "network": network,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
        "kernel": np.random.default_rng(0).normal(size=(2, 2, 3, 3)),
        "layer": layer,
        "loss": layer.weight.square().sum(),
        "jax": pytest.importorskip("jax", reason="JAX is not installed"),
    }


# What the examples of a page presume. Those of the other pages are run by the tests of their subject.
PRESUMED: dict[str, Callable[[Any], dict[str, Any]] | None] = {
    "README": None,
    "getting-started": _of_a_network,
    "gradient-transforms": lambda _: {"gradient": np.random.default_rng(0).normal(size=(4, 2, 3, 3))},
    "how-to": _of_a_network,
    "initialisers": None,
    "instead": lambda torch: {**_of_a_network(torch), "layer": torch.nn.Conv2d(3, 8, 3, padding=1)},
    "inspect-a-model": _of_a_network,
    "studies": None,
    "clusters": None,
    "keep-a-network-1-lipschitz": _of_a_training,
}


OPTIONAL = {"torch.onnx.export": "onnxscript", "import keras": "keras", "import flax": "flax"}
"""What a block of a page needs beyond the extras, and is left out without."""


@pytest.mark.command
@pytest.mark.torch
@pytest.mark.parametrize("name", PRESUMED)
def test_examples_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.chdir(tmp_path)
    if name == "inspect-a-model":
        pytest.importorskip("pandas", reason="pandas is not installed")
    # Threads instead of processes, and a small network instead of a download.
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", concurrent.futures.ThreadPoolExecutor)
    models = SimpleNamespace(resnet18=lambda weights: _network(torch))  # noqa: ARG005 - the library's own signature
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    (page,) = (page for page in PAGES if page.stem == name)
    presumed = PRESUMED[name]
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        if any(word in block and find_spec(package) is None for word, package in OPTIONAL.items()):
            continue
        names |= presumed(torch) if presumed else {}  # anew, as some are alternatives
        exec(block.replace("zeros(1, 3, 224, 224)", "zeros(1, 3, 32, 32)"), names)


def test_the_gallery_has_every_notebook() -> None:
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for script in (ROOT / "notebooks").glob("*.py"):
        for way in ("_static/thumbnails/{}.png", "(notebooks/{}.py)", "<notebooks/download/{}.ipynb>"):
            assert way.format(script.stem) in gallery
    shown = re.findall(r"thumbnails/(\w+)\.png", gallery)
    assert sorted(shown) == sorted(script.stem for script in (ROOT / "notebooks").glob("*.py"))


def test_a_version_is_the_same_wherever_it_is_written() -> None:
    version = re.escape(convla.__version__)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (released,) = re.findall(rf"^version: {version}\ndate-released: (\S+)$", citation, re.MULTILINE)
    changes = re.findall(r"^## .*$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    newest = next(heading for heading in changes if heading != "## [Unreleased]")
    assert newest == f"## [{convla.__version__}] - {released}"
