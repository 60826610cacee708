"""Run the three studies of the page *Studies of your own* and write what they find into it, or check that it says it.

python docs/studies_page.py FOLDER    # runs what FOLDER does not hold yet, keeps the results beside the page, writes
python docs/studies_page.py           # writes anew from the CSV files beside the page
python docs/studies_page.py --check   # exit code 1 if that would change the page
"""

from __future__ import annotations

import csv
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from verdicts_page import written

HERE = Path(__file__).parent
STUDIES = ("failures-as-kernels-grow", "natural-patches", "layers")
GROWTHS: dict[str, tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]] = {
    "N": (
        {"M": "64", "kernels": "2"},
        ("full", "same", "valid"),
        ("2", "3", "4", "5", "7", "9", "12", "16", "20", "25"),
    ),
    "M": ({"N": "9", "kernels": "2"}, ("full", "same", "valid"), ("9", "16", "32", "64", "128", "256")),
    "padding": ({"N": "9", "M": "64", "kernels": "2"}, (), tuple("012345678")),
    "kernels": ({"N": "9", "M": "64"}, ("full", "valid"), ("2", "3", "4")),
}
"""What grows, beside what stays and what is told apart besides the loss, and how far."""
LOSSES = ("kernel", "convolutional", "scale-invariant")

Key = tuple[str, ...]
Found = dict[Key, dict[str, tuple[float, float]]]


def main(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    check = list(arguments) == ["--check"]
    for folder in [] if check else arguments:
        for name in STUDIES:
            _run(name, Path(folder))
    page = HERE / "studies.md"
    text = page.read_text(encoding="utf-8")
    growths = {f"growth of {axis}": functools.partial(_growth, axis) for axis in GROWTHS}
    new = written(text, {**growths, "worst": _worst, "natural": _natural, "layers": _layers})
    if check:
        if new != text:
            print("docs/studies.md is not what docs/studies says: run python docs/studies_page.py", file=sys.stderr)
        return int(new != text)
    page.write_text(new, encoding="utf-8")
    return 0


def _run(name: str, folder: Path) -> None:
    """Run a study, or go on with it, and keep its rows; draw the first one's picture."""
    from convla.experiments import read_study
    from convla.experiments.descents.plots import plot_rows

    result = read_study(HERE / "studies" / f"{name}.toml").run(folder / name, resume=True)
    kept = HERE / "studies" / f"{name}.csv"
    kept.write_bytes((result.folder / "results.csv").read_bytes())
    if name == STUDIES[0]:
        fixed, paddings, sizes = GROWTHS["N"]
        rows = [
            row
            for row in result.rows
            if row["padding"] in paddings
            and str(row["N"]) in sizes
            and all(str(row[name]) == value for name, value in fixed.items())
        ]
        plot_rows(rows, "failed_pct", "N", HERE / "_static" / "study-failures.png", log=True)


def _read(name: str, *axes: str) -> Found:
    """Return estimates with their standard errors, by the settings that vary, then by the quantity."""
    found: Found = {}
    with (HERE / "studies" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = tuple(row[axis] for axis in axes)
            found.setdefault(key, {})[row["quantity"]] = (float(row["estimate"]), float(row["stderr"] or "nan"))
    return found


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(heading), _line(["---"] * len(heading), gap=""), *map(_line, rows)]


def _line(cells: Sequence[str], gap: str = " ") -> str:
    return "|" + "|".join(f"{gap}{cell}{gap}" for cell in cells) + "|"


def _growth(axis: str) -> list[str]:
    """Return failures in percent, and the mean correlation, as one of the sizes grows."""
    fixed, paddings, sizes = GROWTHS[axis]
    names = ("loss", "padding", "N", "M", "kernels")
    found = _read(STUDIES[0], *names)
    rows = []
    for loss in LOSSES[1::-1]:
        for padding in paddings or ("",):
            settings = [{"loss": loss, "padding": padding, **fixed, axis: size} for size in sizes]
            keys = [tuple(setting[name] for name in names) for setting in settings]
            if all(key in found for key in keys):
                rows.append([f"{loss}, {padding}" if padding else loss, *(_failed(found[key]) for key in keys)])
    symbol = {"padding": "P", "kernels": "S"}.get(axis, axis)
    return _table(["loss, padding" if paddings else "loss", f"{symbol} = {sizes[0]}", *sizes[1:]], rows)


def _failed(values: dict[str, tuple[float, float]]) -> str:
    return f"{_digits(values['failed_pct'][0])} ({values['correlation'][0]:.2f})"


def _worst() -> list[str]:
    found = _read(STUDIES[0], "loss", "padding", "N", "M", "kernels").values()
    failed, correlation = (max(values[name][1] for values in found) for name in ("failed_pct", "correlation"))
    lost = sum(values["diverged_pct"][0] > 0.0 for values in found)
    return [
        f"The standard errors are at most {failed:.2g} and, of the correlation, {correlation:.2g}; "
        f"repetitions diverged in {lost} of {len(found)} settings."
    ]


def _digits(percent: float) -> str:
    return f"{percent:.2f}" if percent < 10.0 else f"{percent:.1f}"


def _natural() -> list[str]:
    inputs = ("uniform", "normal", "correlated", "natural")
    found = _read(STUDIES[1], "N", "loss", "inputs")
    rows = [[n, loss, *(_cell(found[n, loss, name]) for name in inputs)] for n in ("3", "9", "16") for loss in LOSSES]
    worst = max(values["failed_pct"][1] for values in found.values())
    lost = sum(values["diverged_pct"][0] > 0.0 for values in found.values())
    table = _table(["N", "loss", *inputs], rows)
    return [*table, "", f"The standard errors are at most {worst:.2g}; repetitions diverged in {lost} settings."]


def _cell(values: dict[str, tuple[float, float]]) -> str:
    before, after = values["cosine_before"][0], values["cosine_after"][0]
    return f"{values['failed_pct'][0]:.1f} % ({before:.2f} to {after:.2f})"


def _layers() -> list[str]:
    inputs = ("normal", "natural")
    found = _read(STUDIES[2], "channels", "kernels", "loss", "inputs")
    rows = []
    for channels in "13":
        for kernels in "24":
            for loss in LOSSES:
                cells = (found[channels, kernels, loss, name] for name in inputs)
                rows.append([channels, kernels, loss, *map(_layer, cells)])
    return _table(["channels", "kernels", "loss", *inputs], rows)


def _layer(values: dict[str, tuple[float, float]]) -> str:
    failed, error = values["failed_pct"]
    before, after, kept = (values[name][0] for name in ("cosine_before", "cosine_after", "kept_shortest"))
    return f"{failed:.1f} ± {error:.1f} % ({before:.2f} to {after:.2f}; {kept:.2f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
