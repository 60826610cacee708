"""The pages of figures have a place for each part that a benchmark measures, and nothing is written anywhere else."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "benchmarks" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PARTS = {
    "performance.md": [
        *("products", "kernel adjoint", "several images", "long filters", "sparse construction", "dense construction"),
        "threads",
    ],
    "performance-inspect.md": ["networks", "peers"],
    "performance-gradients.md": ["default threads", "one thread"],
    "performance-penalty.md": ["compiled", "reference"],
    "performance-similarity.md": ["memory", "definition", "methods"],
    "performance-spectra.md": ["largest", "enclosures", "smallest", "circular"],
}


@pytest.mark.parametrize("page", PARTS)
def test_every_part_has_its_place(page: str, pages: ModuleType) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert sorted(re.findall(r"<!-- measured: (.*?) -->", text)) == sorted(PARTS[page])
    sources = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("bench_*.py"))
    assert f'measured("{page}"' in sources
    for name in PARTS[page]:
        assert f'"{name}"' in sources
        filled = pages.filled(text, name, "| a |\n|---|\n")
        before, _, after = text.partition(f"<!-- measured: {name} -->")
        assert filled.startswith(before)
        assert filled.endswith(after.partition(f"<!-- end: {name} -->")[2])
        assert pages.filled(filled, name, "| a |\n|---|") == filled


def test_a_part_without_a_place_is_refused(pages: ModuleType) -> None:
    first, last = pages.markers("x")
    for text in ("", first, last, last + first, first + first + last):
        with pytest.raises(ValueError, match="measured: x"):
            pages.filled(text, "x", "")
