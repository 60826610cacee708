"""Write the documentation's pages on the ledger from the statements: ``python -m proofs_checks.page [--check]``.

What a page says of counterexamples and measurements is what their evidence finds as the page is written.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from proofs_checks.ledger import SOURCES, ledger
from proofs_checks.record import RECORD, Record
from proofs_checks.runner import run_evidence
from proofs_checks.statement import Evidence, Kind, Statement, Verdict

__all__ = ["counts", "main", "pages"]

ROOT = Path(__file__).parent.parent
HEADER = "<!-- Written by `python -m proofs_checks.page` from the statements in proofs_checks; change those. -->\n"

PAGE_LINK = re.compile(r"\]\((?=[\w-]+\.md)")
"""Where a link to a page of docs/ begins, for the pages in a folder of it."""
FENCE = "  ~~~"
"""Before and after what a check found, so that `--check` knows its figures."""
EXAMPLES = 50
"""The default of `convla verify`."""
TOLERANCE = 0.05
"""By how much, relatively, a figure that is found may differ between machines without making the page stale."""
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def pages() -> dict[str, str]:
    """Return the text of every page by its path under docs/, and of the README, whose count of statements is ours.

    Raises
    ------
    RuntimeError
        If evidence whose findings are shown cannot run, or contradicts its verdict.
    """
    statements = ledger()
    written = {"ledger.md": _ledger(statements), "errata.md": _errata(statements)}
    for key in SOURCES:
        own = tuple(statement for statement in statements if statement.source == key)
        written[f"ledger/{key.lower()}.md"] = _source(key, own)
        written[f"ledger/{key.lower()}-code.md"] = _code(key, own)
    return {name: "\n".join(lines) for name, lines in written.items()} | {"../README.md": _readme(statements)}


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or with --check return 1 if any of them is stale."""
    parser = argparse.ArgumentParser(prog="python -m proofs_checks.page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="the folder of the pages")
    options = parser.parse_args(arguments)
    stale = 0
    for name, text in pages().items():
        path = options.docs / name
        if options.check:
            if not path.is_file() or not _agree(path.read_text(encoding="utf-8"), text):
                print(f"{path} is stale: run python -m proofs_checks.page", file=sys.stderr)
                stale = 1
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return stale


def _agree(stored: str, fresh: str) -> bool:
    """Tell whether two pages are the same, figures that were found within the tolerance."""
    lines, others = stored.split("\n"), fresh.split("\n")
    if len(lines) != len(others):
        return False
    found = False
    for line, other in zip(lines, others, strict=True):
        found ^= line.startswith(FENCE)
        if line != other and not (found and _agree_in_figures(line, other)):
            return False
    return True


def _agree_in_figures(stored: str, fresh: str) -> bool:
    figures = [[float(number) for number in NUMBER.findall(line)] for line in (stored, fresh)]
    return NUMBER.sub("", stored) == NUMBER.sub("", fresh) and all(
        abs(a - b) <= TOLERANCE * max(a, b) for a, b in zip(*figures, strict=True)
    )


README_LINE = re.compile(r"^(convla verify +# ).*$", re.MULTILINE)


def counts(statements: Iterable[Statement]) -> str:
    """Say how many statements there are, how many are the sources' and how many this project's, and the verdicts of each.

    Examples
    --------
    >>> from proofs_checks.ledger import select
    >>> from proofs_checks.page import counts
    >>> counts(select(["CSM-6", "CSM-35", "CSM-zero"]))
    "3 statements: 2 of the sources' (1 holds, 1 holds as corrected), 1 of this project's (1 holds)"
    """
    own: dict[bool, list[Statement]] = {False: [], True: []}
    for statement in statements:
        own[statement.ours].append(statement)
    parts = []
    for ours, whose in ((False, "the sources'"), (True, "this project's")):
        verdicts = Counter(statement.verdict for statement in own[ours])
        said = ", ".join(
            f"{verdicts[verdict]} {COUNTED[verdict][verdicts[verdict] == 1]}"
            for verdict in Verdict
            if verdicts[verdict]
        )
        parts.append(f"{len(own[ours])} of {whose}" + (f" ({said})" if said else ""))
    return f"{sum(map(len, own.values()))} statements: " + ", ".join(parts)


def _readme(statements: tuple[Statement, ...]) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    ours = sum(statement.ours for statement in statements)
    line = f"{len(statements) - ours} statements of five sources and {ours} of ours, each with evidence that runs"
    if len(README_LINE.findall(text)) != 1:
        raise RuntimeError("README.md must have one line that begins with convla verify and a comment")
    return README_LINE.sub(rf"\g<1>{line}", text)


COUNTED = {
    Verdict.HOLDS: ("hold", "holds"),
    Verdict.CORRECTED: ("hold as corrected", "holds as corrected"),
    Verdict.REFUTED: ("are refuted", "is refuted"),
    Verdict.STATISTICAL: ("are statistical", "is statistical"),
    Verdict.UNDECIDED: ("are undecided", "is undecided"),
}
"""What a number of statements do, more than one and one."""


def _mutants() -> str:
    """Return what became of the wrong versions that were tried last, in words."""
    counts = Record(RECORD).counts()
    kept = f"{counts['survived'] or 'none'} passed unnoticed"
    return (
        f"Of {sum(counts.values())} wrong versions, drawn evenly over the functions, it noticed {counts['noticed']}; "
        f"{counts['equivalent']} compute the same, or nothing that is run here, each for a reason that "
        f"`proofs_checks/equivalent.toml` gives; {kept}."
    )


def _ledger(statements: tuple[Statement, ...]) -> Iterator[str]:
    yield HEADER
    yield "# The ledger\n"
    yield f"{counts(statements)}. Each has a verdict and evidence that runs the shipped functions."
    yield "`convla verify` runs it all, `convla verify CSM-6` one statement; `python -m proofs_checks.mutate` asks whether the"
    yield f"evidence would notice if those functions were wrong. {_mutants()}\n"
    yield "Evidence is, strongest first,\n"
    yield "- **proof at a size**: an identity of multilinear forms, or of polynomials, checked on all basis inputs, or on"
    yield "  symbols, in exact arithmetic. It holds for every real input of the sizes named."
    yield "- **counterexample**: a smallest input, found by search, for which what is printed fails; checked exactly."
    yield "- **property**: random inputs, adversarial ones among them; floating-point values against rounding bounds that are"
    yield "  derived, not chosen."
    yield "- **measurement**: a distribution, with what is asserted of it."
    yield ""
    yield "A claim is *undecided* where what can be run or recomputed here speaks neither for it nor against it.\n"
    yield "A claim is quoted as it is meant, misprints mended; the correction says what is printed, or what holds instead."
    yield "What stands in a box under a counterexample or a measurement is what the check itself found.\n"
    yield "What is misprinted or false is collected on [its own page](errata.md). Each name of a check leads to its code.\n"
    # The list of choices is made by _static/ledger.js; without it all statements are shown.
    yield "```{raw} html"
    yield '<div id="ledger-filter"></div>'
    yield "```\n"
    yield "```{toctree}"
    yield ":hidden:\n"
    for key in SOURCES:
        yield f"ledger/{key.lower()}"
        yield f"ledger/{key.lower()}-code"
    yield "```\n"
    for key, title in SOURCES.items():
        yield f"## {key}\n"
        yield f"*{title}*: [all of its statements](ledger/{key.lower()}.md).\n"
        yield "| statement | where | verdict |"
        yield "|---|---|---|"
        for statement in statements:
            if statement.source == key:
                name = f"[{statement.id}](#{_anchor(statement)}) {statement.title}"
                yield f"| {name} | {statement.number} | {statement.verdict.value} |"
        yield ""


def _source(key: str, statements: tuple[Statement, ...]) -> Iterator[str]:
    yield HEADER
    yield f"# {key}: {SOURCES[key]}\n"
    yield f"{counts(statements)}. [What the kinds of evidence mean](../ledger.md)."
    yield f"Each name of a check leads to [its code]({key.lower()}-code.md).\n"
    for statement in statements:
        for line in _entry(statement):
            yield PAGE_LINK.sub("](../", line)


def _entry(statement: Statement) -> Iterator[str]:
    yield f"({_anchor(statement)})="
    yield f"## {statement.id}: {statement.title}\n"
    where = "A result of this project." if statement.ours else f"{statement.source}, {statement.number}."
    where += " Suggested there, not stated." if statement.suggested else ""
    yield f"{where} **{statement.verdict.value.capitalize()}.**\n"
    yield f"> {statement.claim}\n"
    for label, text in (("Correction", statement.correction), ("Counterexample", statement.counterexample)):
        if text:
            yield f"{label}: {_linked(text)}\n"
    if statement.note:
        yield f"{_linked(statement.note)}\n"
    for piece in statement.evidence:
        yield f"- {piece.kind.value}: {piece.covers} ([{piece.name.replace('_', ' ')}](#{_code_anchor(piece)}))"
        if piece.kind in (Kind.COUNTEREXAMPLE, Kind.MEASUREMENT):
            finding = _finding(statement, piece)
            parts = finding.split("; ") if piece.kind is Kind.MEASUREMENT else [finding]
            yield from ("", f"{FENCE}text", *(f"  {part}" for part in parts), FENCE, "")
    yield ""


@functools.lru_cache
def _ids() -> re.Pattern[str]:
    return re.compile(rf"\b({'|'.join(re.escape(statement.id) for statement in reversed(ledger()))})\b(?!\.\d)")


def _linked(text: str) -> str:
    """Return the text with the ids of statements as links to them."""
    return _ids().sub(lambda match: f"[{match[1]}](#{match[1].lower()})", text)


@functools.lru_cache
def _finding(statement: Statement, piece: Evidence) -> str:
    outcome = run_evidence(statement, piece, EXAMPLES)
    if outcome.status != "confirmed":
        raise RuntimeError(f"{statement.id} {piece.name}: {outcome.finding}")
    return outcome.finding


def _errata(statements: tuple[Statement, ...]) -> Iterator[str]:
    yield HEADER
    yield "# Errata of the sources\n"
    yield "What the source documents print that does not hold as it stands. Each entry leads to its evidence in the ledger;"
    yield "`convla verify ID` runs it.\n"
    for key, title in SOURCES.items():
        wrong = [
            s
            for s in statements
            if s.source == key and not s.ours and (s.verdict not in (Verdict.HOLDS, Verdict.UNDECIDED) or s.correction)
        ]
        if not wrong:
            continue
        yield f"## {title} ({key})\n"
        headings = {
            Verdict.REFUTED: "False",
            Verdict.CORRECTED: "To be corrected",
            Verdict.STATISTICAL: "Not as likely as stated",
            Verdict.HOLDS: "True, with a misprint in the proof",
            Verdict.UNDECIDED: "Undecided, and to be corrected",
        }
        for verdict, heading in headings.items():
            entries = [statement for statement in wrong if statement.verdict is verdict and not statement.suggested]
            if entries:
                yield f"### {heading}: {key}\n"
            for statement in entries:
                text = statement.correction
                if verdict is Verdict.REFUTED:
                    text = f"{statement.claim} *Counterexample:* {statement.counterexample}"
                elif verdict is Verdict.STATISTICAL:
                    text = f"{statement.claim} {statement.note}"
                yield f"{statement.number}, {statement.title}"
                yield f": {_linked(text)} [{statement.id}](#{_anchor(statement)})\n"
        suggested = [statement for statement in wrong if statement.suggested]
        if suggested:
            yield f"### Suggested, not stated, and not so: {key}\n"
        for statement in suggested:
            yield f"{statement.number}, {statement.title}"
            yield f": {statement.claim} *Counterexample:* {_linked(statement.counterexample)} [{statement.id}](#{_anchor(statement)})\n"


def _code(key: str, statements: tuple[Statement, ...]) -> Iterator[str]:
    yield HEADER
    yield f"# {key}: the evidence, as code\n"
    yield "Every check takes the number of random examples and returns a line on what it found; it raises `AssertionError` if"
    yield f"the claim fails. What each check is evidence for stands with [the statements]({key.lower()}.md).\n"
    for piece in _unique(statements):
        if piece.check.__module__.split(".")[1] != key.lower():
            continue  # shared: it stands with its own source
        path = Path(inspect.getfile(piece.check)).relative_to(ROOT).as_posix()
        yield f"({_code_anchor(piece)})="
        yield f"## {piece.name.replace('_', ' ')}\n"
        yield f"`{path}`\n"
        yield f"```{{literalinclude}} ../../{path}"
        yield f":pyobject: {piece.name}"
        yield "```\n"


def _unique(statements: Iterable[Statement]) -> Iterator[Evidence]:
    seen = set()
    for statement in statements:
        for piece in statement.evidence:
            if piece.name not in seen:
                seen.add(piece.name)
                yield piece


def _anchor(statement: Statement) -> str:
    return statement.id.lower()


def _code_anchor(piece: Evidence) -> str:
    return f"code-{piece.name.replace('_', '-')}"


if __name__ == "__main__":
    sys.exit(main())
