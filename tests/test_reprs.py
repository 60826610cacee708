"""What results look like at a prompt and in a notebook: a line, and a table of a few rows."""

from __future__ import annotations

import numpy as np
import pytest

from convla import ConvOperator, clip_singular_values, inspect, minimize_penalty, nearest_orthogonal, singular_values
from convla.experiments.descents.outcome import Outcome

LINE = 250


@pytest.fixture(scope="module")
def layer() -> ConvOperator:
    return ConvOperator(np.random.default_rng(0).normal(size=(3, 2, 3, 3)), (6, 6))


def test_results_are_a_line(layer: ConvOperator) -> None:
    descent = minimize_penalty(layer, iterations=3)
    first, *_, last = descent.trace.reported
    assert repr(descent.trace) == f"<Trace of 3 iterations: penalty {first:.6g} to {last:.6g}, as reported>"
    clipped = clip_singular_values(layer.kernel, (6, 6), maximum=1.0)
    orthogonal = nearest_orthogonal(layer.kernel, (6, 6))
    for result in (descent, descent.trace, singular_values(layer), clipped, orthogonal):
        assert "\n" not in repr(result)
        assert "array(" not in repr(result)
        assert len(repr(result)) < LINE


def test_an_outcome_tells_how_many_repetitions_converged() -> None:
    norms = np.ones((4, 2, 3))
    norms[1, 1, 0] = np.inf
    outcome = Outcome(np.zeros(4), np.ones((4, 2)), np.ones((4, 2)), norms, np.ones((4, 2)))
    assert repr(outcome) == "<Outcome of 4 repetitions of 3 kernels, 3 converged>"


def test_a_table_has_the_first_values_and_says_of_how_many(layer: ConvOperator) -> None:
    values = singular_values(layer)
    table = values._repr_html_()
    assert table.count("<td>") == 2 * 20
    assert f"<td>{values.value:.12g}</td>" in table
    assert "the first 20 of 72" in table
    assert "<caption>" not in singular_values(layer, 2)._repr_html_()


def test_a_report_is_a_table_in_a_notebook() -> None:
    report = inspect({"<b>": np.ones((2, 1, 3)), "one": np.ones((1, 1, 3))}, image=(8,))
    table = report._repr_html_()
    assert table.count("<tr>") == 1 + 2
    assert f"<td>{report['<b>'].quantities['sigma_max']:.4g}</td>" in table
    assert "<td>&lt;b&gt;</td><td>2x1x3</td><td>8</td>" in table
    assert report["one"].quantities["mutual_coherence"] is None
    assert f"<td></td><td>{report['one'].summary}</td></tr></tbody>" in table  # the coherence is not defined


def test_numpy_is_told_how_to_get_the_matrix(layer: ConvOperator) -> None:
    for operator in (layer, layer.T, 2 * layer):
        with pytest.raises(TypeError, match=r"no array: to_dense\(\) makes its \d+ x \d+ matrix"):
            np.asarray(operator)
