"""Ctrl-C at any moment: what is asked again afterwards has the value that it had before."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import threadpoolctl

from tests.fuzz.case import Case, check
from tests.fuzz.checks.penalties import moderate_layer


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@check(weight=0.3)
def interrupted(case: Case) -> None:
    """A timer interrupts a call somewhere; threads are as before, and the call gives the same value, bit for bit."""
    layer = case.layer("mid", library=False)
    calls = ("largest_singular_value(op).values", "smallest_singular_value(op).values", "singular_value_bounds(op)")
    call = case.one_of((*calls, "op.to_dense()"))
    if layer.transposed and "dense" in call:
        call = calls[0]
    try:
        began = time.perf_counter()
        before = np.asarray(case.evaluate(call)[:2] if "bounds" in call else case.evaluate(call))
    except OverflowError:
        return
    if threading.current_thread() is not threading.main_thread():
        return
    took = time.perf_counter() - began
    handler = signal.signal(signal.SIGALRM, _interrupt)
    limits = threadpoolctl.threadpool_limits(2, user_api="blas")  # a limit of one that stays behind would not show
    try:
        signal.setitimer(signal.ITIMER_REAL, max(1e-5, took * case.rng.random()))
        case.evaluate(call)
        signal.setitimer(signal.ITIMER_REAL, 0)  # here, so that what comes in the meantime is caught too
    except KeyboardInterrupt:
        case.counts["interrupted"] += 1
    finally:
        signal.signal(signal.SIGALRM, handler)
        left = {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}
        limits.restore_original_limits()
    case.expect(left == {2}, f"after an interrupt of {call} the BLAS has {left} threads and not 2")
    after = np.asarray(case.evaluate(call)[:2] if "bounds" in call else case.evaluate(call))
    case.expect(np.array_equal(before, after), f"{call} was {before}, and is {after} after an interrupt")


@check(weight=0.5)
def interrupted_descent(case: Case) -> None:
    """A callback interrupts a descent, which then goes on as if it had not been."""
    moderate_layer(case)
    tracker = case.one_of(("block", "power", "exact"))
    stop = int(case.rng.integers(1, 6))
    states: list[Any] = []

    def interrupt(state: Any) -> None:
        states[:] = [state]
        if state.iteration == stop:
            raise KeyboardInterrupt

    case.names |= {"interrupt": interrupt, "states": states}
    call = f"minimize_penalty(op, iterations=8, step=FixedStep(1e-3), tracker={tracker!r}"
    whole = case.evaluate(f"{call})", "whole")
    try:
        case.evaluate(f"{call}, callback=interrupt)")
    except KeyboardInterrupt:
        case.counts["interrupted"] += 1
        resumed = case.evaluate(f"states[0].run({8 - stop})", "resumed")
        same = np.array_equal(resumed.kernel, whole.kernel) and resumed.iteration == whole.iteration
        case.expect(same, f"interrupted at step {stop} and resumed, the descent ends elsewhere")
