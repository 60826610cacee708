"""An extension of the site: a page of the reference lists the notebooks and pages whose code uses what it describes."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def setup(app: Any) -> dict[str, bool]:
    """Join the build: the pages are read once, and each docstring gets its list behind what numpydoc made of it."""
    pages = _pages()

    def append(_app: Any, _what: str, _name: str, described: object, _options: Any, lines: list[str]) -> None:
        if found := pages.get(id(described)):
            lines += ["", ".. rubric:: Used in", "", *(f"- :doc:`/{page}`" for page in found), ""]

    app.connect("autodoc-process-docstring", append, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _pages() -> dict[int, list[str]]:
    """Return, by the identity of a function or class, the pages whose code names it."""
    sources = {f"notebooks/{path.stem}": [path.read_text(encoding="utf-8")] for path in _scripts()}
    sources |= {path.stem: CODE.findall(path.read_text(encoding="utf-8")) for path in sorted(HERE.glob("*.md"))}
    pages: dict[int, list[str]] = {}
    for page, blocks in sources.items():
        names: dict[str, str] = {}  # a later block of a page goes on with what an earlier one has imported
        for found in {id(found): found for block in blocks for found in _used(block, names)}.values():
            pages.setdefault(id(found), []).append(page)
    return pages


def _scripts() -> list[Path]:
    return sorted((HERE.parent / "notebooks").glob("*.py"))


def _used(code: str, names: dict[str, str]) -> Iterator[object]:
    """Yield the functions and classes of convla that a piece of code names; `names` are what is imported, as what."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a fragment
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots = {each.name.partition(".")[0]: each.name.partition(".")[0] for each in node.names if not each.asname}
            names |= roots | {each.asname: each.name for each in node.names if each.asname}
        if isinstance(node, ast.ImportFrom):
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            first, _, rest = ast.unparse(node).partition(".")
            found = _found(".".join(filter(None, (names.get(first, ""), rest))))
            if isinstance(found, type) or callable(found):
                yield found


def _found(name: str) -> object:
    """Return what a dotted name of convla stands for; None for anything else."""
    if name.partition(".")[0] != "convla":
        return None
    found: object = importlib.import_module("convla")
    for part in name.split(".")[1:]:
        found = getattr(found, part, None)
    return found
