"""Two models side by side as one page of HTML: each quantity of each layer before and after, and a table to sort."""

from __future__ import annotations

from convla.networks.comparison import Change, Comparison
from convla.networks.drawings import LogScale
from convla.networks.report import ENDS
from convla.networks.shell import Cell, bullets, number_cell, page_of, shown, table_of, text_of

__all__ = ["to_page"]


def to_page(found: Comparison) -> str:
    """Return a comparison as a page of HTML, with its styles and its script inside: it opens without a network.

    Parameters
    ----------
    found : Comparison

    Returns
    -------
    str

    Examples
    --------
    >>> import numpy as np
    >>> from convla import compare
    >>> from convla.networks.paired import to_page
    >>> page = to_page(compare({"conv": np.ones((2, 1, 1))}, {"conv": 2 * np.ones((2, 1, 1))}, image=(8,)))
    >>> page.count("sigma_max") > 1, "http" in page
    (True, False)
    """
    names = [report.model_name for report in (found.before, found.after)]
    words = (
        f"Before (a ring): {text_of(names[0])}. After (a disc): {text_of(names[1])}. Each quantity on a logarithmic "
        "scale of its own; the pale stretches about sigma_max are its proved enclosures."
    )
    pictures = [f"<h2>{text_of(name)}</h2>{_picture(found, name)}" for name in found.quantities]
    missing = [f"only before: {text_of(name)}" for name in found.only_before]
    missing += [f"only after: {text_of(name)}" for name in found.only_after]
    return page_of(
        f"{names[0]} and {names[1]}",
        [f"<p>{words}</p>", *pictures, "<h2>All changes</h2>", _table(found), bullets(missing, "In one only")],
    )


def _picture(found: Comparison, quantity: str) -> str:
    """Draw a quantity of every layer that both have, before and after."""
    changes = [one for one in found if one.quantity == quantity]
    scale = LogScale(value for one in changes for value in _values(one))
    lines = []
    for one in changes:
        marks = [scale.bar(*ends, "span") for ends in one.enclosures if ends is not None]
        if one.before is not None and one.after is not None:
            marks.append(scale.bar(one.before, one.after, "link"))
        marks += [
            scale.dot(value, style)
            for value, style in ((one.before, "before"), (one.after, "after"))
            if value is not None
        ]
        words = f"{one.layer}: {_shown(one.before)} before, {_shown(one.after)} after"
        ratio = "" if one.ratio is None else f"x {one.ratio:.3g}"
        missing = "" if marks else '<span class="none">not defined</span>'
        lines.append(
            f'<span class="name">{text_of(one.layer)}</span>'
            f'<span class="track pair" title="{text_of(words)}">{"".join(marks)}{missing}</span><span>{ratio}</span>'
        )
    return f'<div class="steps">{"".join(lines)}</div>'


def _values(change: Change) -> list[float]:
    values = [value for value in (change.before, change.after) if value is not None]
    return values + [end for ends in change.enclosures if ends is not None for end in ends]


def _shown(value: float | None) -> str:
    return "not defined" if value is None else shown(value)


def _table(found: Comparison) -> str:
    heads = [("layer", "word"), ("quantity", "word"), ("before", ""), ("after", ""), ("ratio", "")]
    rows = [
        (
            Cell(text_of(one.layer)),
            Cell(text_of(one.quantity)),
            number_cell(one.before),
            number_cell(one.after),
            number_cell(one.ratio),
        )
        for one in found
        if one.quantity not in ENDS
    ]
    return table_of(heads, rows)
