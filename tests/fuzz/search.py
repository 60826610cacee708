"""The search: which case comes when, for how long, on how many processes; what it found."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import threadpoolctl

from tests.fuzz.case import Case, WrongAnswerError, load_checks

LONGEST = 60
"""Seconds after which a case is ended and counts as failed."""

SAVE_EVERY = 2.0  # seconds between the messages of a process


@dataclass
class Finding:
    """A case that failed, with how to see it again."""

    check: str
    seed: int
    message: str
    reproducer: str

    @property
    def name(self) -> str:
        return f"{self.check}:{self.seed}"


@dataclass
class Report:
    """What was run, by check, and what failed."""

    cases: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    findings: list[Finding] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, other: Report) -> None:
        self.cases.update(other.cases)
        self.seconds.update(other.seconds)
        self.failed.update(other.failed)
        for name, counts in other.counts.items():
            self.counts[name].update(counts)
        self.findings += other.findings

    @property
    def layers(self) -> int:
        return sum(counts["layers"] for counts in self.counts.values())

    @property
    def summary(self) -> str:
        return f"{self.layers} layers drawn, {sum(self.cases.values())} cases, {sum(self.failed.values())} failed"

    def __str__(self) -> str:
        lines = [f"{'check':20s} {'cases':>8s} {'failed':>7s} {'s':>7s}  seen"]
        total: Counter[str] = Counter()
        for name in sorted(self.cases):
            seen = ", ".join(f"{what} {n}" for what, n in sorted(self.counts[name].items()))
            lines.append(f"{name:20s} {self.cases[name]:8d} {self.failed[name]:7d} {self.seconds[name]:7.0f}  {seen}")
            total += self.counts[name]
        lines.append(self.summary)
        if estimates := total["estimated"]:
            shares = [
                f"{total[f'estimated beyond {what}'] / estimates:.2%} beyond {what}" for what in ("rtol", "errors")
            ]
            lines.append(f"of {estimates} values said to be estimated, {' and '.join(shares)}")
        return "\n".join(lines)


def seed_of(seed: int, index: int) -> int:
    """The seed of the case with this index."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def run_case(name: str, seed: int) -> tuple[Case, Finding | None]:
    """Run one case; whatever it raises is a finding."""
    case = Case(seed)
    before = pools()
    try:
        with _limited(LONGEST):
            load_checks()[name].run(case)
        after = pools()
        changed = {name: (before[name], after[name]) for name in before if after[name] != before[name]}
        case.expect(not changed, f"thread limits changed: {changed}")
    except WrongAnswerError as failure:
        message = str(failure)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} (at {where.filename}:{where.lineno})"
    else:
        return case, None
    return case, Finding(name, seed, message, case.reproducer)


class _limited:  # noqa: N801
    """Raise TimeoutError in what takes longer than so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        self.handler = signal.signal(signal.SIGVTALRM, self.stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds)

    def __exit__(self, *_: Any) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, self.handler)

    def stop(self, *_: Any) -> None:
        raise TimeoutError(f"more than {self.seconds} s of processor time")


_controller: threadpoolctl.ThreadpoolController | None = None
_loaded = 0


def pools() -> dict[str, int]:
    """The thread limits of every pool in this process, by name."""
    global _controller, _loaded
    libraries = sum(name in sys.modules for name in ("numba", "torch", "jax", "scipy.linalg", "scipy.sparse.linalg"))
    if _controller is None or libraries != _loaded:
        _controller, _loaded = threadpoolctl.ThreadpoolController(), libraries
    found = {lib.filepath: lib.num_threads for lib in _controller.lib_controllers}
    for name, ask in (("numba", "get_num_threads"), ("torch", "get_num_threads")):
        ask_it = getattr(sys.modules.get(name), ask, None)
        if ask_it is not None:
            found[name] = ask_it()
    return found


def warm_up(only: Sequence[str] = ()) -> None:
    """Load what is loaded lazily, so that pools which start on the way are not taken for limits that changed."""
    for name in only or load_checks():
        for seed in range(3):
            run_case(name, seed)


def cases(seed: int, only: Sequence[str], worker: int, workers: int) -> Iterator[tuple[str, int]]:
    """The endless sequence of cases of one process: names by weight, seeds by index."""
    checks = load_checks()
    names = list(only or checks)
    weights = np.array([checks[name].weight for name in names])
    for index in range(worker, 2**63, workers):
        own = seed_of(seed, index)
        yield str(np.random.default_rng(own).choice(names, p=weights / weights.sum())), own


def search(seed: int, seconds: float, only: Sequence[str] = (), worker: int = 0, workers: int = 1) -> Iterator[Report]:
    """Run cases for so long, and yield a report of each stretch."""
    warm_up(only)
    end = time.monotonic() + seconds
    report, saved = Report(), time.monotonic()
    for name, own in cases(seed, only, worker, workers):
        began = time.monotonic()
        if began >= end:
            break
        case, finding = run_case(name, own)
        report.cases[name] += 1
        report.seconds[name] += time.monotonic() - began
        report.counts[name].update(case.counts)
        if finding is not None:
            report.failed[name] += 1
            report.findings.append(finding)
        if time.monotonic() - saved > SAVE_EVERY:
            yield report
            report, saved = Report(), time.monotonic()
    yield report


def _send(results: Any, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for report in search(*arguments):
        results.put(report)
    results.put(None)


def search_on(workers: int, seed: int, seconds: float, only: Sequence[str] = ()) -> Iterator[Report]:
    """The same on several processes; one that dies is a finding of its own."""
    if workers == 1:
        yield from search(seed, seconds, only)
        return
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    running = [
        context.Process(target=_send, args=(results, (seed, seconds, only, worker, workers)), daemon=True)
        for worker in range(workers)
    ]
    for process in running:
        process.start()
    left = workers
    while left:
        try:
            report = results.get(timeout=5)
        except queue.Empty:
            dead = [process for process in running if process.exitcode not in (None, 0)]
            if dead:
                died = f"a process of the search ended with {dead[0].exitcode}"
                yield Report(failed=Counter(process=1), findings=[Finding("process", 0, died, "")])
                return
            continue
        if report is None:
            left -= 1
        else:
            yield report
