"""`python -m tests.fuzz`: search drawn layers and files for what the library gets wrong."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter

if __name__ == "__main__":  # before NumPy starts its threads: the matrices are small
    for _name in ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

from tests.fuzz.case import load_checks
from tests.fuzz.search import Report, run_case, search_on

SHOWN = 5
"""How many failures of one check are printed whole."""

TOLD_EVERY = 60.0
"""Seconds between two lines that say how far the search is: what a killed search leaves behind."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Draw layers and files and compare what the library says of them with independent oracles. "
        "The exit code is 1 if anything was wrong.",
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to search (default 2)")
    parser.add_argument("--seed", type=int, default=None, help="of the sequence of cases; a new one by default")
    parser.add_argument(
        "--only", action="append", default=[], choices=sorted(load_checks()), help="a check, repeatable"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--replay", metavar="CHECK:SEED", help="run one case again, as a failure names it")
    return parser.parse_args(arguments)


def replay(name: str) -> int:
    check, _, seed = name.partition(":")
    case, finding = run_case(check, int(seed))
    print(case.reproducer)
    print(f"# {finding.message}" if finding else "# nothing is wrong")
    return 1 if finding else 0


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.replay:
        return replay(options.replay)
    seed = int.from_bytes(os.urandom(4)) if options.seed is None else options.seed
    print(f"seed {seed}, {options.minutes:g} minutes, {options.workers} processes", flush=True)
    total, shown = Report(), Counter[str]()
    began = told = time.monotonic()
    try:
        for report in search_on(options.workers, seed, 60 * options.minutes, options.only):
            total.add(report)
            for finding in report.findings:
                shown[finding.check] += 1
                text = finding.reproducer if len(finding.reproducer) < 4000 else "(long: see --replay)"
                body = f"\n{text}" if shown[finding.check] <= SHOWN else ""
                print(f"\nFAILED {finding.name}\n# {finding.message}{body}", flush=True)
            if (now := time.monotonic()) - told > TOLD_EVERY:
                told = now
                print(f"{(now - began) / 60:4.0f} min: {total.summary}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    print(f"\n{total}")
    return 1 if total.findings else 0


if __name__ == "__main__":
    sys.exit(main())
