"""Warnings of what did not converge: unheard on one Python thread while asked for, the process's filters untouched."""

from __future__ import annotations

import contextlib
import threading
import warnings

import pytest

from convla import _convergence, _threads
from convla._convergence import unheard, warn
from convla.errors import ConvergenceWarning
from tests.interrupts import interrupted


def heard() -> bool:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        warn("far off", stacklevel=1)
    return len(given) == 1


def test_the_line_that_asked_is_named() -> None:
    def function() -> None:
        warn("far off", stacklevel=2)

    with pytest.warns(ConvergenceWarning, match="far off") as given:
        function()
    assert given[0].filename == __file__


def test_it_is_of_one_thread_and_ends() -> None:
    with unheard():
        assert not heard()
        found: list[bool] = []
        other = threading.Thread(target=lambda: found.append(heard()))
        other.start()
        other.join()
        assert found == [True]
        with unheard():
            assert not heard()
        assert not heard()
    with pytest.raises(ZeroDivisionError), unheard():
        raise ZeroDivisionError
    assert heard()


def test_filters_are_left_alone() -> None:
    before = list(warnings.filters)
    with unheard():
        assert warnings.filters == before


def test_an_interrupt_at_any_moment_leaves_nothing_behind() -> None:
    def work() -> None:
        with unheard(), unheard():
            warn("far off", stacklevel=1)

    moment, came = 0, True
    while came:
        moment += 1
        came = interrupted(moment, work, contextlib, _convergence, _threads)
        assert heard()
    assert moment > 20
