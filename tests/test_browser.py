"""The pages of HTML in a real browser: sorting by a click, on a phone, and in print; and the figures for a paper."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convla
from convla.networks.certificate import certify
from convla.networks.drawings import LogScale, histogram
from convla.networks.graph import Network, Node
from convla.networks.layers import dense_layer
from convla.networks.report import Inspection

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def report() -> Inspection:
    """A report with a long name, densities, what is not defined and infinite, and a bound."""
    rng = np.random.default_rng(0)
    weights = {f"{'block.' * 12}weight": rng.standard_normal((3, 2, 3)), "b.weight": rng.standard_normal((2, 4))}
    weights |= {"c.weight": np.ones((4, 2, 3)), "one.weight": np.ones((1, 1, 3))}
    found = convla.inspect(weights, image=(9,))
    density = convla.spectral_density(convla.ConvOperator(np.ones((4, 2, 3)), (9,)))
    layers = tuple(replace(row, density=density) for row in found)
    nodes = [Node("x", "input"), Node("up", "layer", ("x",), layer=dense_layer(np.array([[4.0]])))]
    certificate = certify(Network({node.name: node for node in nodes}, ("up",)), lambda _: 4.0)
    return replace(found, layers=layers, certificate=certificate)


PROBE = """
<script>
const column = name => [...document.querySelectorAll("th")].find(head => head.textContent === name);
const cells = name => [...document.querySelectorAll("tbody tr")].map(row =>
  row.cells[column(name).cellIndex].textContent);
const click = name => { column(name).querySelector("button").click(); return cells(name); };
const seen = {names: cells("layer"), width: window.innerWidth, needed: document.documentElement.scrollWidth};
seen.down = click("sigma_max"); seen.up = click("sigma_max"); seen.again = (click("sigma_max"), cells("layer"));
seen.coherence = [click("coherence"), click("coherence")];
seen.layers = [click("layer"), click("layer")];
seen.heights = [...document.querySelectorAll(".histogram")].map(one => one.getBoundingClientRect().height);
parent.postMessage(JSON.stringify(seen), "*");
</script>
"""

FRAME = """<!DOCTYPE html>
<iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>
addEventListener("message", message => {{
  const probe = document.createElement("pre"); probe.id = "probe"; probe.textContent = message.data;
  document.body.append(probe); }});
</script>
"""
"""A window of a browser is not made as narrow as a phone; a frame in it is."""


def run_browser(*options: str, page: Path) -> str:
    """Run a browser without a window on a page, and return what it prints."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is found")
    # The sandbox of the browser needs rights that a container's root has not; the page is our own.
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    return subprocess.run(
        [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout


def seen_by(report: Inspection, width: int, folder: Path) -> dict[str, Any]:
    page = folder / "page.html"
    page.write_text(report.to_html().replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width))
    text = run_browser("--virtual-time-budget=5000", "--window-size=1500,900", "--dump-dom", page=frame)
    found = re.search(r'<pre id="probe">(.*?)</pre>', text, re.DOTALL)
    assert found is not None, text[-2000:]
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.mark.command
def test_a_click_sorts_by_numbers_and_by_words(report: Inspection, tmp_path: Path) -> None:
    seen = seen_by(report, 1400, tmp_path)
    values = [float(text) for text in seen["down"]]
    assert values == sorted(values, reverse=True)
    assert seen["up"] == seen["down"][::-1]
    assert seen["again"] == seen["names"]  # a third click restores the model's order
    for order, way in zip(seen["coherence"], (-1, 1), strict=True):
        defined = [float(text) for text in order if text != "not defined"]
        assert order[len(defined) :] == ["not defined"] * (len(order) - len(defined))  # the last, both ways
        assert len(defined) < len(order)
        assert defined == sorted(defined, key=lambda value: way * value)
    assert seen["layers"][1] == sorted(seen["names"])
    assert len(seen["heights"]) == len(report)
    assert min(seen["heights"]) > 10


@pytest.mark.command
def test_a_phone_shows_all_without_scrolling_to_the_side(report: Inspection, tmp_path: Path) -> None:
    seen = seen_by(report, 390, tmp_path)
    assert seen["width"] == 390
    assert seen["needed"] <= 390


@pytest.mark.command
def test_the_page_prints(report: Inspection, tmp_path: Path) -> None:
    page, target = tmp_path / "page.html", tmp_path / "page.pdf"
    page.write_text(report.to_html(), encoding="utf-8")
    run_browser(f"--print-to-pdf={target}", page=page)
    data = target.read_bytes()
    assert data.startswith(b"%PDF")
    box = re.search(rb"/MediaBox\s*\[\s*0\s+0\s+([\d.]+)\s+([\d.]+)", data)
    assert box is not None
    assert float(box[1]) > float(box[2])  # a table as wide as this one lies on its side


def test_the_spectrum_as_a_picture(report: Inspection) -> None:
    found = convla.spectral_density(convla.ConvOperator(np.ones((1, 1, 1)), (4,)))
    assert histogram(found).count("<rect") == 1
    copies = report["c.weight"].density
    assert copies is not None
    assert "of them 0" not in histogram(replace(copies, zeros=0))
    estimated = replace(
        copies, shares=np.array([0.5, 0.5]), errors=np.array([0.25, 0.0]), zeros=3, confidence=0.95,
        status=convla.spectra.Status.ESTIMATED, zeros_proved=False,
    )  # fmt: skip
    picture = histogram(estimated)
    assert picture.count("<rect") == 3
    assert "hold in 95% of runs; at least 3 of them 0" in picture


def test_places_on_a_scale() -> None:
    scale = LogScale([1.0, 100.0, 0.0, np.inf])
    assert [scale.place(value) for value in (0.0, 1.0, 10.0, 100.0, np.inf)] == [0.0, 0.0, 50.0, 100.0, 100.0]
    assert LogScale([]).place(1.0) == 50.0


@pytest.mark.command
def test_figures_keep_their_words_apart(report: Inspection) -> None:
    """No two labels of a figure meet, and what is not defined says so."""
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from convla.networks.plot import bound_figure, comparison_figure, inspection_figure

    assert report.certificate is not None
    changed = convla.compare(
        report, convla.inspect({"b.weight": np.ones((2, 4)), "c.weight": np.ones((4, 2, 3))}, image=(9,))
    )
    for figure in (inspection_figure(report), comparison_figure(changed), bound_figure(report.certificate)):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        for panel in figure.axes:
            axes = [panel.xaxis, panel.yaxis] if panel is figure.axes[0] else [panel.xaxis]  # which share the names
            for axis in axes if panel.axison else []:
                low, high = sorted(axis.get_view_interval())
                marks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
                boxes = [
                    label.get_window_extent(renderer)
                    for place, label in marks
                    if low <= place <= high and label.get_visible() and label.get_text()
                ]
                boxes += [text.get_window_extent(renderer) for text in panel.texts] if axis is panel.xaxis else []
                assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])
    words = [text.get_text() for panel in inspection_figure(report).axes for text in panel.texts]
    assert "not defined" in words
    assert {"infinite", "rank deficient"} <= set(words)
