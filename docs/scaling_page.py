"""Draw how cost grows and write the page *How cost grows*, from what ``benchmarks/bench_scaling.py`` measured.

python docs/scaling_page.py           # draws docs/_static/scaling.png, writes the page's tables
python docs/scaling_page.py --check   # exit code 1 if that would change the page
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verdicts_page import written

HERE = Path(__file__).parent
WORKERS = (1, 2, 4, 8, 16, 32, 64)
LAST = 3
"""The points at the end of a curve that its exponent is fitted to: there the cost of starting is over."""

GROWING = {
    "repetitions": ("repetitions of a study", 1.0, "the processor's, seconds"),
    "files": ("files inspected", 1.0, "the processor's, seconds"),
    "channels": ("channels, 3x3 on 8x8", 2.0, "largest_singular_value, seconds"),
    "image": ("side of the image, 16 channels", 2.0, "largest_singular_value, seconds"),
}
"""Curve: what grows, the exponent that is expected, and what is measured."""

Row = dict[str, float]


def main(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    curves = _read()
    page = HERE / "scaling.md"
    text = page.read_text(encoding="utf-8")
    new = written(text, {"curves": lambda: _exponents(curves), "workers": lambda: _workers(curves)})
    if "--check" in arguments:
        if new != text:
            print("docs/scaling.md is not what docs/scaling says: run python docs/scaling_page.py", file=sys.stderr)
        return int(new != text)
    page.write_text(new, encoding="utf-8")
    _draw(curves, HERE / "_static" / "scaling.png")
    return 0


def _read() -> dict[str, list[Row]]:
    curves: dict[str, list[Row]] = {}
    with (HERE / "scaling" / "scaling.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curves.setdefault(row.pop("curve"), []).append({name: float(value) for name, value in row.items()})
    return curves


def exponent(rows: Sequence[Row]) -> float:
    """Return the slope of the least-squares line through the logarithms of the last points."""
    points = [(math.log(row["size"]), math.log(row["processor"])) for row in rows[-LAST:]]
    x, y = (sum(column) / len(points) for column in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def _exponents(curves: dict[str, list[Row]]) -> list[str]:
    lines = ["| grows | from | to | time at the end | exponent | expected | memory, least and most |", "|---" * 7 + "|"]
    for curve, (what, expected, _) in GROWING.items():
        rows = curves[curve]
        memory = [row["mebibytes"] for row in rows]
        lines.append(
            f"| {what} | {rows[0]['size']:,.0f} | {rows[-1]['size']:,.0f} | {rows[-1]['processor']:.3g} s | "
            f"{exponent(rows):.2f} | {expected:g} | {min(memory):.0f} to {max(memory):.0f} MiB |"
        )
    found = json.loads((HERE / "scaling" / "machine.json").read_text(encoding="utf-8"))
    return [*lines, "", f"convla {found['convla']} on {found['machine']}, one thread."]


def _per_part(curves: dict[str, list[Row]], time: str) -> tuple[float, float]:
    """Return the seconds that the driver takes for a part while the workers work, and after that."""
    rows = (curves[name][-1] for name in ("overhead", "estimates"))
    meanwhile, after = (row[time] / row["parts"] for row in rows)
    return meanwhile, after


def _speedup(workers: int, curves: dict[str, list[Row]]) -> float:
    """Return how many parts of a second end in a second."""
    meanwhile, after = _per_part(curves, "clock")
    return 1.0 / (max(1.0 / workers, meanwhile) + after)


def _workers(curves: dict[str, list[Row]]) -> list[str]:
    processor = sum(_per_part(curves, "processor"))
    meanwhile, after = _per_part(curves, "clock")
    seconds = {int(row["size"]): row["clock"] for row in curves["workers"]}
    lines = ["| workers | parts a second, projected | measured |", "|---|---|---|"]
    for workers in WORKERS:
        measured = f"{seconds[1] / seconds[workers]:.2f}" if workers in seconds else ""
        lines.append(f"| {workers} | {_speedup(workers, curves):.3g} | {measured} |")
    return [
        f"A part of about a second costs the driver {1e3 * processor:.1f} ms of its processor, {100 * processor:.1f} % "
        f"of the part. By the clock it is {1e3 * meanwhile:.1f} ms while the workers work, so that it keeps up with "
        f"{math.floor(1.0 / meanwhile)} of them, and {1e3 * after:.1f} ms for the estimates when all parts are saved.",
        "",
        *lines,
    ]


def _name_ticks(axes: Any, sizes: Sequence[float]) -> None:
    """Write each size where its point is, where powers of ten are too far apart for that."""
    if max(sizes) <= 10**4:
        axes.minorticks_off()
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])


def _draw(curves: dict[str, list[Row]], path: Path) -> None:
    from matplotlib.figure import Figure

    from convla.experiments.drawing import COLORS, INK, save_figure, tidy

    figure = Figure(figsize=(9.0, 8.4), layout="constrained")
    panels: Any = figure.subplots(3, 2).ravel()
    for axes, (curve, (what, expected, measured)) in zip(panels, GROWING.items(), strict=False):
        rows = curves[curve]
        sizes, times = ([row[name] for row in rows] for name in ("size", "processor"))
        tidy(axes)
        axes.loglog(sizes, times, "o-", color=COLORS[0], linewidth=1.3, markersize=4)
        guide = [times[-1] * (size / sizes[-1]) ** expected for size in sizes]
        axes.loglog(sizes, guide, color=INK, linestyle="dotted", linewidth=1.0)
        _name_ticks(axes, sizes)
        title = f"exponent {exponent(rows):.2f}, expected {expected:g} (dotted)"
        axes.set_title(title, fontsize=9, color=INK)
        axes.set_xlabel(what, fontsize=9, color=INK)
        axes.set_ylabel(measured, fontsize=9, color=INK)
    memory, speed = panels[4:]
    tidy(memory)
    rows = curves["repetitions"]
    memory.semilogx([row["size"] for row in rows], [row["mebibytes"] for row in rows], "o-", color=COLORS[1])
    memory.set_ylim(0.0, 1.1 * max(row["mebibytes"] for row in rows))
    memory.set_xlabel("repetitions of a study", fontsize=9, color=INK)
    memory.set_ylabel("the most memory, MiB", fontsize=9, color=INK)
    tidy(speed)
    speed.loglog(WORKERS, [_speedup(n, curves) for n in WORKERS], color=COLORS[0], label="projected")
    speed.loglog(WORKERS, WORKERS, color=INK, linestyle="dotted", linewidth=1.0, label="without any overhead")
    seconds = {int(row["size"]): row["clock"] for row in curves["workers"]}
    speed.loglog(
        list(seconds), [seconds[1] / time for time in seconds.values()], "o", color=COLORS[1], label="measured"
    )
    _name_ticks(speed, WORKERS)
    speed.set_xlabel("workers", fontsize=9, color=INK)
    speed.set_ylabel("parts of a second that end in one", fontsize=9, color=INK)
    speed.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
