"""Two models side by side, and the page of HTML: what is in them, and what a hostile name cannot do."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convla
from convla.cli import run
from convla.networks.certificate import certify
from convla.networks.graph import Network, Node
from convla.networks.layers import dense_layer
from convla.networks.page import to_page
from convla.networks.report import Inspection
from convla.networks.weights import write_weights


def weights(scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"a.weight": scale * rng.standard_normal((3, 2, 3)), "b.weight": rng.standard_normal((2, 4))}


@pytest.mark.command
def test_changes_layer_by_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("a.npz", "b.npz")]
    write_weights(files[0], {**weights(), "gone.weight": np.ones((1, 2))})
    write_weights(files[1], {**weights(2.0), "new.weight": np.ones((2, 2))})
    found = convla.compare(*files, image=(7,), measures=["sigma_max", "similarity"])
    ratios = {(one.layer, one.quantity): one.ratio for one in found}
    assert ratios["a.weight", "sigma_max"] == pytest.approx(2.0, rel=1e-9)
    assert ratios["a.weight", "similarity"] == pytest.approx(16.0, rel=1e-9)
    assert ratios["b.weight", "sigma_max"] == 1.0
    assert (found.only_before, found.only_after) == (("gone.weight",), ("new.weight",))
    assert found.to_csv().splitlines()[0] == "layer,quantity,before,after,ratio"
    outputs = [tmp_path / name for name in ("c.json", "c.csv")]
    arguments = ["compare", *map(str, files), "--image", "7", "--json", str(outputs[0]), "--csv", str(outputs[1])]
    pictures = [tmp_path / name for name in ("d.html", "d.png")]
    assert run([*arguments, "--html", str(pictures[0]), "--plot", str(pictures[1])]) == 0
    assert pictures[1].read_bytes().startswith(b"\x89PNG")
    page = Page()
    page.feed(pictures[0].read_text())
    assert page.asked == []
    assert page.tags.count("tr") == 1 + 2 * len(("sigma_max", "stable_rank", "similarity", "scaled_similarity"))
    assert run([*arguments, "--plot", str(tmp_path / "d.gif")]) == 2
    assert "  only in B: new.weight" in capsys.readouterr().out
    assert json.loads(outputs[0].read_text())["schema"] == "convla-comparison-1"
    with pytest.raises(ValueError, match="must have layers of one name"):
        convla.compare({"x.weight": np.ones((2, 2))}, {"y.weight": np.ones((2, 2))})


class Page(HTMLParser):
    """Collects the tags, the cells of tables, and what would be asked of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.tags[-1] in ("td", "span"):
            self.cells[-1] += data


def test_the_page_has_every_number_and_asks_for_nothing(tmp_path: Path) -> None:
    hostile = "</td><script>alert(1)</script>\x1b[31m"
    report = convla.inspect({f"{hostile}.weight": np.ones((2, 1, 3)), **weights()}, image=(6,))
    page = Page()
    page.feed(to_page(report))
    assert page.asked == []
    assert page.tags.count("script") == 1
    assert page.tags.count("tr") == 1 + len(report)
    for layer in report:
        for value in layer.quantities.values():
            if value is not None and np.isfinite(value):
                assert any(cell.endswith(f"{value:.5g}") for cell in page.cells)
    path, target = tmp_path / "m.npz", tmp_path / "m.html"
    write_weights(path, weights())
    assert run(["inspect", str(path), "--image", "6", "--measures", "sigma_max", "--html", str(target)]) == 0
    assert target.read_text().startswith("<!DOCTYPE html>")


def test_half_a_model_is_not_compared() -> None:
    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"image": (7,), "measures": ["similarity"]}
    with pytest.raises(KeyboardInterrupt):
        convla.compare(weights(), weights(2.0), progress=stop, **options)
    half, whole = convla.inspect(weights(), progress=stop, **options), convla.inspect(weights(2.0), **options)
    found = convla.compare(half, whole)
    assert {one.layer for one in found} == {"a.weight"}
    assert (found.only_before, found.only_after) == ((), ())


def test_the_page_draws_the_bound_step_by_step() -> None:
    layers = {name: dense_layer(np.array([[factor]])) for name, factor in (("up", 4.0), ("down", 0.5))}
    nodes = [Node("x", "input"), Node("up", "layer", ("x",), layer=layers["up"])]
    nodes += [Node("relu", "map", ("up",), "relu"), Node("down", "layer", ("relu",), layer=layers["down"])]
    network = Network({node.name: node for node in nodes}, ("down",))
    certificate = certify(network, {"up": 4.0, "down": 0.5}.__getitem__)
    assert certificate.upper == pytest.approx(2.0, rel=1e-14)
    assert [step.name for step in certificate.largest_shares] == ["up"]
    assert [(step.name, step.before, step.bound) for step in certificate.steps if step.is_shown] == [
        ("up", 1.0, pytest.approx(4.0, rel=1e-14)), ("down", pytest.approx(4.0, rel=1e-14), certificate.upper),
    ]  # fmt: skip
    page = Page()
    page.feed(to_page(Inspection((), (), certificate)))
    assert page.tags.count("i") == 2
    refused = Network({**network.nodes, "y": Node("y", "unknown", ("down",), "a <gate>")}, ("y",))
    text = to_page(Inspection((), (), certify(refused, {"up": 4.0, "down": 0.5}.__getitem__)))
    assert "y: a &lt;gate&gt;" in text
