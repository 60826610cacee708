"""What `convla doctor` says of a machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from convla import __main__, doctor, errors
from convla._dispatch import ENGINES
from convla.cli import run
from convla.errors import install_line


def of_section(section: str) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine() if finding.section == section}


def test_the_command_lists_versions_engines_and_extras(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run(["doctor"]) == 0
    printed = capsys.readouterr().out
    for part in ("Versions", "Engines", "GPU", "Threads", "Caches", "Extras", "which hides every device: unset it"):
        assert part in printed
    assert importlib.metadata.version("numpy") in printed
    assert set(of_section("Engines")) == {*ENGINES, "CONVLA_ENGINE"}
    declared = importlib.metadata.metadata("convla").get_all("Provides-Extra")
    assert declared
    assert set(of_section("Extras")) == set(declared)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_torch(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_torch)
    extras = of_section("Extras")
    assert extras["torch"].text == f"lacks torch: {install_line('torch')}"
    assert "torch" in extras["train"].text  # which asks for the extra torch
    assert not any(finding.bad for finding in extras.values())


@pytest.mark.usefixtures("cupy")
def test_a_gpu_and_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cuda_trouble", lambda: "")
    found = of_section("GPU")
    assert list(found) == ["CuPy", "device 0", "device 1", "NVRTC", "cuBLAS", "cuFFT", "cuSOLVER"]
    assert found["device 1"].text == "a stand-in, compute capability 9.0, 8.0 of 8.0 GiB free"


def test_a_library_that_is_not_there(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ImportError("libcufft.so.11: cannot open shared object file")

    monkeypatch.setattr(doctor, "cuda_trouble", lambda: "")
    monkeypatch.setattr(cupy.fft, "rfft", refuse)
    found = of_section("GPU")
    assert [name for name, finding in found.items() if finding.bad] == ["cuFFT"]
    assert "libcufft.so.11" in found["cuFFT"].text
    assert "cupy-cuda12x[ctk]" in found["cuFFT"].text


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/no/such/folder")
    finding = of_section("Caches")["compiled kernels"]
    assert finding.bad
    assert finding.text == "/no/such/folder cannot be written: every process compiles anew"


def test_it_works_without_the_command_lines_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("convla.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.setattr(sys, "argv", ["convla", "doctor"])
    with pytest.raises(SystemExit, match="0"):
        __main__.main()
    assert "Engines" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["convla", "doctor", "--help"])
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
    assert "the command line needs the extra cli" in capsys.readouterr().err


def test_the_line_that_installs_an_extra_says_from_where_and_into_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "pip" else find_spec(name))
    checkout = Path(errors.__file__).parent.parent
    monkeypatch.chdir(checkout)
    assert install_line("torch") == "pip install -e '.[torch]'"
    monkeypatch.chdir(tmp_path)
    assert install_line("torch") == f"pip install -e '{checkout}[torch]'"
    # A copy that pip made from a folder, from one that is gone, and from an index.
    installed = tmp_path / "site packages" / "convla" / "errors.py"
    monkeypatch.setattr(errors, "__file__", str(installed))
    for record, origin in (
        (json.dumps({"dir_info": {}, "url": tmp_path.as_uri()}), str(tmp_path)),
        (json.dumps({"dir_info": {}, "url": (tmp_path / "gone").as_uri()}), "convla"),
        (None, "convla"),
    ):
        monkeypatch.setattr(
            importlib.metadata, "distribution", lambda _, text=record: SimpleNamespace(read_text=lambda _: text)
        )
        assert install_line("torch") == f"pip install '{origin}[torch]'"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert install_line("torch") == f"python3 -m pip --python '{sys.prefix}' install 'convla[torch]'"
