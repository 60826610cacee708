"""How the site reads the notebooks: as jupytext does, with the language named, which else an execution adds."""

from __future__ import annotations

from typing import Any

import jupytext


def reads(text: str) -> Any:
    """Return the notebook that a script in the percent format stands for."""
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return notebook
