"""What an import brings with it, and that the public names are all there."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

import convla
from convla.errors import install_line

NEED_TORCH = {f"convla.experiments.training.{part}" for part in ("images", "methods", "networks", "trainer")}
HEAVY = ("numba", "cupy", "torch", "jax", "sympy", "flint", "matplotlib", "rich", "typer", "loky")


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(run.stdout)}


@pytest.mark.command
def test_the_package_imports_nothing_until_a_name_is_asked_for() -> None:
    assert _loaded_after("import convla").isdisjoint({*HEAVY, "numpy", "scipy"})


@pytest.mark.command
def test_the_public_names_import_no_framework_and_no_compiler() -> None:
    assert _loaded_after("from convla import *").isdisjoint(HEAVY)


@pytest.mark.command
def test_the_experiments_import_no_user_interface() -> None:
    assert _loaded_after("import convla.experiments.reproduction").isdisjoint(
        {"matplotlib", "rich", "typer", "numba", "torch"}
    )


@pytest.mark.command
def test_the_help_of_the_command_line_imports_no_numerics() -> None:
    quiet = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):"
    help_printed = f"from convla.cli import run\n{quiet} run(['--help'])"
    assert _loaded_after(help_printed).isdisjoint({"cupy", "torch", "jax", "numba", "numpy", "scipy"})


@pytest.mark.command
def test_the_adapter_names_the_extra_it_lacks() -> None:
    code = "import sys; sys.modules['torch'] = None; import convla.frameworks.torch"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: convla.frameworks.torch needs PyTorch: " + install_line("torch") in run.stderr


def test_every_public_name_is_there_and_sorted() -> None:
    assert convla.__all__ == sorted(convla.__all__)
    assert [name for name in convla.__all__ if not hasattr(convla, name)] == []
    assert set(convla.__all__) <= set(dir(convla))


def test_each_line_of_the_stub_is_a_public_name_where_it_is_defined() -> None:
    stub = (Path(convla.__file__).with_suffix(".pyi")).read_text(encoding="utf-8")
    imports = [line for line in stub.splitlines() if line.startswith(("from", "import"))]
    assert len(imports) == len(convla.__all__) - 1  # __version__ is the module's own: no line is passed over


def test_modules_are_attributes_and_what_is_missing_is_told() -> None:
    assert convla.spectra is sys.modules["convla.spectra"]
    with pytest.raises(AttributeError, match="module 'convla' has no attribute 'spectrum_of_nothing'"):
        _ = convla.spectrum_of_nothing


@pytest.mark.parametrize("name", [module.name for module in pkgutil.walk_packages(convla.__path__, "convla.")])
def test_all_names_exactly_what_a_module_defines(name: str) -> None:
    if "frameworks" in name or name in NEED_TORCH:
        pytest.importorskip("jax" if "jax" in name else "torch", reason="the framework is not installed")
    module = __import__(name, fromlist=["__all__"])
    defined = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and isinstance(value, FunctionType | type) and value.__module__ == name
    }
    assert defined <= set(getattr(module, "__all__", ())), f"{name}.__all__ lacks {defined - set(module.__all__)}"
    assert all(hasattr(module, key) for key in getattr(module, "__all__", ()))


def test_the_reference_has_every_public_name() -> None:
    pages = (Path(__file__).parents[1] / "docs" / "reference").glob("*.md")
    documented = [
        name for page in pages for name in re.findall(r"^   convla\.(\w+)$", page.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(documented) == len(set(documented))
    assert set(documented) >= set(convla.__all__) - {"__version__"}
