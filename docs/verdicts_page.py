"""Write what `convla reproduce` finds into the pages that tell of it, or check that they say it.

python docs/verdicts_page.py TABLES CONTROLS FIGURES   # results folders: copies their CSV files, and writes
python docs/verdicts_page.py                           # writes anew from the CSV files beside the pages
python docs/verdicts_page.py --check                   # exit code 1 if that would change a page

TABLES is the folder of ``convla reproduce tables coverage --repetitions 100000 --seed 1 --rounds 4``, CONTROLS that of
``convla reproduce controls --repetitions 10000 --seed 1``, FIGURES that of ``convla reproduce figures --seed 0``.
"""

from __future__ import annotations

import csv
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
FILES = (
    {name: name for name in (*(f"table{n}.csv" for n in range(1, 7)), "coverage.csv", "seeds.csv")}
    | {"conclusions.csv": "tables.csv"},
    {"controls.csv": "controls.csv", "conclusions.csv": "control-sentences.csv"},
    {"conclusions.csv": "figures.csv"},
)
"""What is taken of each results folder, and where it is kept."""

Row = dict[str, str]


def main(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    if len(arguments) == len(FILES):
        for index, folder in enumerate(arguments):
            for name, kept in FILES[index].items():
                shutil.copyfile(Path(folder) / name, HERE / "verdicts" / kept)
    stale = []
    for name, regions in PAGES.items():
        page = HERE / name
        text = page.read_text(encoding="utf-8")
        new = written(text, regions)
        if new != text and "--check" in arguments:
            stale.append(name)
        elif new != text:
            page.write_text(new, encoding="utf-8")
    for name in stale:
        print(f"docs/{name} is not what docs/verdicts says: run python docs/verdicts_page.py", file=sys.stderr)
    return 1 if stale else 0


def written(text: str, regions: dict[str, Callable[[], list[str]]]) -> str:
    """Return a page with its regions, between the comments that begin and end them, written anew."""
    for name, lines in regions.items():
        begin, end = f"% begin {name}\n", f"% end {name}\n"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        if not (begin in text and end in rest):
            raise ValueError(f"a page lacks the comments % begin {name} and % end {name}")
        text = before + begin + "\n" + "\n".join(lines()) + "\n\n" + end + after
    return text


def _read(name: str) -> list[Row]:
    with (HERE / "verdicts" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _cells() -> list[Row]:
    """Return the cells of columns A to C."""
    return [row for n in range(1, 7) for row in _read(f"table{n}.csv") if not row["quantity"].startswith("D")]


COLUMNS = {
    "corr_mean": "A mean",
    "corr_std": "A std",
    "B_reduction_frequency_pct": "B",
    "C_decrease_mean_pct": "C mean",
    "C_decrease_std_pct": "C std",
}


def verdicts() -> list[str]:
    """Return how many cells got each verdict, and which are not reproduced or undecided."""
    cells = _cells()
    counts = Counter(row["verdict"] for row in cells)
    tested = [row for row in cells if row["p"] not in ("", "nan")]
    least = min(tested, key=lambda row: float(row["p"]))
    below = sum(float(row["p"]) < 0.05 for row in tested)
    lines = [
        f"- Of the {len(cells)} cells of columns A, B and C "
        + ", ".join(f"{count} are {verdict}" for verdict, count in counts.most_common())
        + ".",
        f"- Of the {len(tested)} decided ones {below} have a probability below 5 %, where {0.05 * len(tested):.1f} are "
        "expected if all agree.",
        f"- The least probability is that of {_place(least)}: {float(least['ours']):.3g} against the printed "
        f"{least['published']}, p = {float(least['p']):.2g}, and {float(least['holm']):.2g} for all cells at once.",
    ]
    further = [row for row in cells if row["runs"] not in ("", "0")]
    if further:
        settled = sum(row["verdict"] != "undecided" for row in further)
        lines.append(
            f"- Of the {len(further)} that the repetitions leave undecided, further runs of 1000, at most "
            f"{max(int(row['runs']) for row in further)} of them, decide {settled}."
        )
    open_ones = [_place(row) for row in cells if row["verdict"] == "undecided"]
    if open_ones:
        lines.append(f"- Undecided even so: {'; '.join(open_ones)}.")
    return lines


def _place(row: Row) -> str:
    return f"Table {row['table']}, N = {row['N']} {row['optimizer']}, {COLUMNS[row['quantity']]}"


def seeds() -> list[str]:
    """Return how many cells got each verdict over runs of 1000."""
    rows = _read("seeds.csv")
    lines = [f"| of 90 cells, over {len(rows)} runs of 1000 | least | median | most |", "|---|---|---|---|"]
    for name in ("reproduced", "not reproduced", "undecided", "p < 0.05"):
        counts = sorted(int(row[name]) for row in rows)
        lines.append(f"| {name} | {counts[0]} | {counts[len(counts) // 2]} | {counts[-1]} |")
    return lines


def coverage() -> list[str]:
    """Return the coverage by columns and tables, as ranges over the six rows of each."""
    lines = [
        "| column | tables | standard error over true spread | 95 % intervals that hold the true value, % "
        "| runs with p < 0.05, % |",
        "|---|---|---|---|---|",
    ]
    rows = _read("coverage.csv")
    for quantity, label in COLUMNS.items():
        for tables in (("1", "3", "5"),) if quantity.startswith("corr") else (("2",), ("4", "6")):
            found = [row for row in rows if row["quantity"] == quantity and row["table"] in tables]
            ranges = [
                _range([float(row[name]) for row in found if row[name] not in ("", "nan")], digits)
                for name, digits in (("stderr_over_spread", 2), ("covered", 0), ("contradicted", 0))
            ]
            lines.append(f"| {label} | {', '.join(tables)} | " + " | ".join(ranges) + " |")
    return lines


def _range(values: list[float], digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}" if values else "undecided"


def figures() -> list[str]:
    """Return RCK's sentences with their verdicts and what they rest on."""
    lines = ["| sentence | verdict | from |", "|---|---|---|"]
    for row in _read("figures.csv"):
        where = row["subject"].replace("Section 3, ", "")
        lines.append(f"| {where}: {row['statement']} | {row['verdict']} | {row['evidence']} |".replace("_", r"\_"))
    return lines


def sentences() -> list[str]:
    """Return CSM's sentences with their verdicts and numbers, and those on the controls."""
    rows = [row for row in _read("tables.csv") if row["subject"] != "Control"]
    rows += [row for row in _read("control-sentences.csv") if row["subject"] == "Control"]
    text = [f"- *{row['verdict']}*: {row['subject']}. {row['statement']} Numbers: {row['evidence']}." for row in rows]
    return [line.replace("|", r"\|").replace("_", r"\_") for line in text]


def cosines() -> list[str]:
    """Return the mean |cos| of the feature maps before and after each minimisation, of the pairs under full padding."""
    rows = _read("controls.csv")
    lines = [
        "| N, optimizer | at the start | orthogonal kernels | shrinkage | convolutional similarity | scale-invariant |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if (row["tables"], row["minimized"]) != ("3-4", "convolutional"):
            continue
        same = [other for other in rows if (other["N"], other["optimizer"]) == (row["N"], row["optimizer"])]
        after = {(other["tables"], other["minimized"]): other["cosine_after"] for other in same}
        ends = [
            after[key]
            for key in (("1-2", "kernel"), ("3-4", "shrinkage"), ("3-4", "convolutional"), ("3-4", "scale-invariant"))
        ]
        cells = [f"{float(value):.2g}" for value in (row["cosine_before"], *ends)]
        lines.append(f"| {row['N']}, {row['optimizer']} | " + " | ".join(cells) + " |")
    return lines


PAGES = {
    "what-the-tables-show.md": {
        "verdicts": verdicts,
        "seeds": seeds,
        "sentences": sentences,
        "cosines": cosines,
        "coverage": coverage,
    },
    "penalty.md": {"figures": figures},
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
