"""Configuration of the Sphinx site."""

from __future__ import annotations

import shutil
from pathlib import Path

from convla import __version__

project = "convla"
author = "The convla maintainers"
copyright = "2026, the convla maintainers"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_copybutton",
]
intersphinx_mapping: dict[str, tuple[str, None]] = {}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The notebooks are jupytext percent scripts; they are executed on every build, and an error in one fails it.
here = Path(__file__).parent
shutil.copytree(here.parent / "notebooks", here / "notebooks", dirs_exist_ok=True)
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True

exclude_patterns = ["_build", "*.py", "scripts", "**/__pycache__", "**/.ipynb_checkpoints"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False

html_theme = "furo"
html_title = "convla"
html_static_path = ["_static"]
