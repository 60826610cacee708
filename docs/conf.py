"""Configuration of the Sphinx site."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import jupytext

from convla import __version__

project = "convla"
author = "The convla maintainers"
copyright = "2026, the convla maintainers"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # the site needs no network
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
]
intersphinx_mapping: dict[str, tuple[str, None]] = {}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The notebooks are jupytext percent scripts. Continuous integration executes them on every build, and an error in one
# fails it; elsewhere the outputs of a script that has not changed are kept. For a quick look at the pages, without the
# outputs: sphinx-build -D nb_execution_mode=off.
here = Path(__file__).parent
shutil.copytree(here.parent / "notebooks", here / "notebooks", dirs_exist_ok=True)
(here / "notebooks" / "download").mkdir(exist_ok=True)
for script in (here.parent / "notebooks").glob("*.py"):
    jupytext.write(jupytext.read(script), here / "notebooks" / "download" / f"{script.stem}.ipynb")
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force" if "CI" in os.environ else "cache"
nb_execution_timeout = 900  # of a cell; a busy machine takes minutes for one of seconds
nb_execution_raise_on_error = True
nb_merge_streams = True

templates_path = ["_templates"]
exclude_patterns = [
    "_templates",
    "notebooks/download",
    "claims",
    "_build",
    "*.py",
    "scripts",
    "**/__pycache__",
    "**/.ipynb_checkpoints",
]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False

html_theme = "furo"
html_title = "convla"
html_static_path = ["_static"]
html_css_files = ["convla.css"]
html_js_files = ["ledger.js"]


def _escape_mathematics(_app, _what, _name, _object, _options, lines: list[str]) -> None:
    """Let docstrings speak of (c_out, c_in, *kernel) and of |K|, which reStructuredText takes for markup."""
    for number, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = [re.sub(r"(?<![\\*])([*|])(?=[\w.()])|(?<=[\w)])\|", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app) -> None:
    # Before numpydoc, which takes the docstring apart.
    app.connect("autodoc-process-docstring", _escape_mathematics, priority=100)
