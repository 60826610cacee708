"""Configuration of the Sphinx site."""

from __future__ import annotations

import base64
import importlib
import io
import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path

import jupytext
from docutils import nodes
from PIL import Image
from sphinx import addnodes
from sphinx.util.nodes import make_refnode

import convla.typing
from convla import __version__

here = Path(__file__).parent
sys.path.insert(0, str(here))

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
    "used_in",  # of this folder
]
intersphinx_mapping: dict[str, tuple[str, None]] = {}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The notebooks are jupytext percent scripts. Continuous integration executes them on every build, and an error in one
# fails it; elsewhere the outputs of a script that has not changed are kept. For a quick look at the pages, without the
# outputs: sphinx-build -D nb_execution_mode=off.
shutil.copytree(here.parent / "notebooks", here / "notebooks", dirs_exist_ok=True)
(here / "notebooks" / "download").mkdir(exist_ok=True)
for script in (here.parent / "notebooks").glob("*.py"):
    jupytext.write(jupytext.read(script), here / "notebooks" / "download" / f"{script.stem}.ipynb")
nb_custom_formats = {".py": "percent.reads"}
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

default_role = "py:obj"  # a name in a docstring leads to its page where it has one
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in convla.typing.__annotations__}  # ArrayLike, not what it stands for
python_maximum_signature_line_length = 88  # a longer one has a line for each argument
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False

html_theme = "furo"
html_title = "convla"
html_static_path = ["_static"]
html_css_files = ["convla.css"]
html_js_files = ["accessible.js", "ledger.js", "versions.js"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "versions.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}


def _escape_mathematics(_app, _what, _name, _object, _options, lines: list[str]) -> None:
    """Let docstrings speak of (c_out, c_in, *kernel) and of |K|, which reStructuredText takes for markup."""
    for number, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = [re.sub(r"(?<![\\*])([*|])(?=[\w.()])|(?<=[\w)])\|", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def _name_aliases(_app, _what, _name, _object, _options, *texts: str | None) -> tuple[str | None, ...]:
    """Write the name of an alias of a type within a union, as autodoc does of one that stands alone."""
    return tuple(text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in texts)


def _link_names(app, doctree, docname: str) -> None:
    """Let `penalty` in prose lead to the page of `convla.penalty`, wherever it names something of the reference."""
    objects = app.env.domains["py"].objects
    for literal in [*doctree.findall(nodes.literal)]:
        text = literal.astext()
        name = next((name for name in (text, f"convla.{text}") if name in objects), None)
        inside = isinstance(literal.parent, nodes.reference | nodes.title)
        if name is None or inside or not name.startswith("convla.") or objects[name].docname == docname:
            continue
        target = objects[name]
        link = make_refnode(app.builder, docname, target.docname, target.node_id, literal.deepcopy(), name)
        literal.replace_self(link)


def _keep_numbers_whole(_app, doctree) -> None:
    """Let no number in a table be broken at its sign or exponent."""
    for cell in doctree.findall(nodes.entry):
        if re.fullmatch(r"[^\w\s]*\d\S{,11}", cell.astext()):
            cell["classes"].append("number")


def _answer_to_every_module(_app, doctree) -> None:
    """Give what is defined an anchor under each package that it is in: listings of sources link by one for a module."""
    for signature in doctree.findall(addnodes.desc_signature):
        module, name = signature.get("module"), signature.get("fullname", "")
        if module:
            described = getattr(importlib.import_module(module), name.partition(".")[0], None)
            home = getattr(described, "__module__", None) or module
            packages = itertools.accumulate(home.split("."), "{}.{}".format)
            signature["ids"] += sorted({f"{package}.{name}" for package in packages} - set(signature["ids"]))


def _make_thumbnails(app, exception) -> None:
    """Put a small picture of each notebook where the gallery shows it: of the cell tagged "thumbnail", or the first."""
    if exception or app.builder.format != "html":
        return
    place = Path(app.outdir) / "_static" / "thumbnails"
    place.mkdir(parents=True, exist_ok=True)
    for notebook in (Path(app.outdir).parent / "jupyter_execute" / "notebooks").glob("*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        cells.sort(key=lambda cell: "thumbnail" not in cell["metadata"].get("tags", []))
        data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        for png in [each["image/png"] for each in data if "image/png" in each][:1]:  # none without execution
            picture = Image.open(io.BytesIO(base64.b64decode("".join(png))))
            picture.thumbnail((560, 280))
            picture.save(place / f"{notebook.stem}.png", optimize=True)


def _list_versions(app, exception) -> None:
    """Write the list of versions, those of the changelog; it belongs into the folder above their sites."""
    if not exception and app.builder.format == "html":
        changes = (here.parent / "CHANGELOG.md").read_text(encoding="utf-8")
        names = re.findall(r"^## \[(\d[^]]*)\]", changes, re.MULTILINE)
        versions = [{"name": name, "url": f"{name}/"} for name in names]
        (Path(app.outdir) / "versions.json").write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8")


def setup(app) -> None:
    app.connect("doctree-read", _answer_to_every_module)
    app.connect("doctree-read", _keep_numbers_whole)
    app.connect("doctree-resolved", _link_names)
    app.connect("build-finished", _list_versions)
    app.connect("build-finished", _make_thumbnails)
    app.connect("autodoc-process-signature", _name_aliases)
    # Before numpydoc, which takes the docstring apart.
    app.connect("autodoc-process-docstring", _escape_mathematics, priority=100)
