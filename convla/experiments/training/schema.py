"""Experiments as TOML files: the ones that come with the package, and one's own; every mistake is named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from convla.errors import ConvlaError
from convla.experiments.reading import read_toml
from convla.experiments.training.settings import (
    MEASURES,
    MOST_BLOCKS,
    MOST_SEEDS,
    Arm,
    Experiment,
    Plan,
    Published,
    Selection,
    Training,
)
from convla.extending import check_real

__all__ = ["ExperimentError", "read_experiment", "shipped_experiments"]

T = TypeVar("T")

TOP = (
    "title",
    "source",
    "notes",
    "measures",
    "margins",
    "seeds",
    "settings",
    "grid",
    "select",
    "arms",
    "digits",
    "published",
)
REQUIRED = ("title", "source", "measures", "seeds", "settings", "arms")
SIZE = ("seeds", "settings", "grid", "select")
PLAIN = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
HINTS = get_type_hints(Training)


class ExperimentError(ConvlaError, ValueError):
    """A file that describes an experiment is malformed, or there is none of that name."""


def shipped_experiments() -> dict[str, Traversable]:
    """Return the experiments that come with the package: their names, and their files.

    Examples
    --------
    >>> "csm-table8" in shipped_experiments()
    True
    """
    folder = resources.files("convla.experiments.training") / "experiments"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".toml"))
    return {name.removesuffix(".toml"): folder / name for name in names}


def read_experiment(name: str) -> Experiment:
    """Return an experiment.

    Parameters
    ----------
    name : str
        One of `shipped_experiments`, or the path of a TOML file.

    Returns
    -------
    Experiment

    Raises
    ------
    ExperimentError
        If there is no such experiment, or its file has an unknown key, lacks one, or gives one a value that it cannot
        have.

    Examples
    --------
    >>> experiment = read_experiment("csm-table8")
    >>> [arm.name for arm in experiment.arms], experiment.full.settings["epochs"]
    (['baseline', 'I = 500', 'β = 0.001'], 100)
    """
    shipped = shipped_experiments()
    source: Traversable | Path = Path(name)
    if name in shipped:
        source = shipped[name]
    elif not name.endswith(".toml"):
        raise ExperimentError(f"there is no experiment {name!r}: give a .toml file, or one of {', '.join(shipped)}")
    data = read_toml(source, name, ExperimentError)
    try:
        return _experiment(source.name.removesuffix(".toml"), data)
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"{name}: {error}") from error


def _experiment(name: str, data: Mapping[str, Any]) -> Experiment:
    _check_keys("", data, TOP, REQUIRED)
    texts = {key: _value(key, data.get(key, ""), str) for key in ("title", "source", "notes")}
    measures = _value("measures", data["measures"], tuple[str, ...])
    for measure in measures:
        _check_one_of("measures", measure, MEASURES)
    if not measures:
        raise ValueError("measures must name at least one")
    margins = _margins(data.get("margins", {}), measures)
    digits = _value("[digits]", data.get("digits", {}), dict)
    _check_keys("[digits]", digits, (*SIZE, "arms"), ())
    arms = _arms(data["arms"])
    full = _plan("", {key: data[key] for key in SIZE if key in data})
    small = {key: digits.get(key, data.get(key)) for key in SIZE}
    own = _value("[digits.settings]", digits.get("settings", {}), dict)
    small["settings"] = {**_value("[settings]", data["settings"], dict), **own, "dataset": "digits"}
    if "dataset" in _value("[digits.grid]", small["grid"] or {}, dict):
        raise ValueError("[digits.grid]: the data set of the digits is not varied: give a grid without it")
    experiment = Experiment(
        name=name,
        measures=measures,
        margins=margins,
        arms=arms,
        full=full,
        digits=_plan("digits.", {key: value for key, value in small.items() if value is not None}),
        published=tuple(_published(entry, arms, full, measures) for entry in data.get("published", [])),
        **texts,
    )
    for where, plan in (("", experiment.full), ("[digits] ", experiment.digits)):
        for block in plan.blocks():
            for arm in arms:
                try:
                    experiment.training(plan, arm, block)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{where}arm {arm.name!r}: {error}") from error
    return experiment


def _margins(data: Any, measures: Sequence[str]) -> dict[str, float]:
    table = _value("[margins]", data, dict)
    _check_keys("[margins]", table, measures, ())
    margins = {name: _value(f"[margins]: {name}", value, float) for name, value in table.items()}
    for name, value in margins.items():
        check_real(f"[margins]: {name}", value, positive=True)
    return margins


def _plan(where: str, data: Mapping[str, Any]) -> Plan:
    settings = _changes(f"[{where}settings]", data["settings"])
    table = _value(f"[{where}grid]", data.get("grid", {}), dict)
    _check_keys(f"[{where}grid]", table, _plain_fields(), ())
    grid = {}
    for key, values in table.items():
        if not isinstance(values, list) or not values:
            raise TypeError(f"[{where}grid]: {key} must be a list of values, got {values!r}")
        grid[key] = tuple(_value(f"[{where}grid]: {key}", value, HINTS[key]) for value in values)
    seeds = _value(f"{where}seeds", data["seeds"], int)
    if seeds < 2:
        raise ValueError(f"{where}seeds must be at least 2, got {seeds}")
    if seeds > MOST_SEEDS:
        raise ValueError(f"{where}seeds must be at most {MOST_SEEDS}, got {seeds}")
    blocks = math.prod(map(len, grid.values()))
    if blocks > MOST_BLOCKS:
        raise ValueError(f"[{where}grid] must have at most {MOST_BLOCKS} combinations, got {blocks}")
    select = _table(f"[{where}select]", data["select"], Selection) if "select" in data else None
    return Plan(settings, grid, seeds, select)


def _arms(entries: Any) -> tuple[Arm, ...]:
    if not isinstance(entries, list) or not entries:
        raise TypeError("arms must be a list of tables, each beginning with [[arms]]")
    arms: list[Arm] = []
    for entry in entries:
        table = dict(_value("[[arms]]", entry, dict))
        name = _value("[[arms]]: name", table.pop("name", None), str)
        where = f"arm {name!r}"
        # By default each is compared with the first.
        against = _value(f"{where}: against", table.pop("against", arms[0].name if arms else ""), str)
        if any(arm.name == name for arm in arms):
            raise ValueError(f"{where} is there twice")
        if against and against not in [arm.name for arm in arms]:
            raise ValueError(f"{where}: against must be an arm above it, or empty for a baseline, got {against!r}")
        arms.append(Arm(name, against, _changes(where, table)))
    return tuple(arms)


def _changes(where: str, data: Any) -> dict[str, Any]:
    """Return the fields of `Training` that a table gives."""
    table = _value(where, data, dict)
    _check_keys(where, table, list(HINTS), ())
    return {key: _value(f"{where}: {key}", value, HINTS[key]) for key, value in table.items()}


def _published(entry: Any, arms: Sequence[Arm], plan: Plan, measures: Sequence[str]) -> Published:
    where = "[[published]]"
    table = dict(_value(where, entry, dict))
    _check_keys(where, table, ("arm", "value", "measure", *plan.grid), ("arm", "value"))
    _check_one_of(f"{where}: arm", table["arm"], [arm.name for arm in arms])
    _check_one_of(f"{where}: measure", table.get("measure", measures[0]), measures)
    for key, values in plan.grid.items():
        if key in table:
            _check_one_of(f"{where}: {key}", table[key], values)
    value = _value(f"{where}: value", table["value"], float)
    at = {key: table[key] for key in plan.grid if key in table}
    return Published(table["arm"], value, at, table.get("measure", measures[0]))


def _table(where: str, data: Any, kind: type[T]) -> T:
    """Return a table as a dataclass, its keys and types checked."""
    table = _value(where, data, dict)
    hints = get_type_hints(kind)
    known = fields(kind)  # type: ignore[arg-type]
    required = [field.name for field in known if field.default is MISSING and field.default_factory is MISSING]
    _check_keys(where, table, list(hints), required)
    try:
        return kind(**{key: _value(f"{where}: {key}", value, hints[key]) for key, value in table.items()})
    except (TypeError, ValueError) as error:
        raise type(error)(str(error) if str(error).startswith(where) else f"{where}: {error}") from error


def _value(where: str, value: Any, hint: Any) -> Any:
    """Return a TOML value as what the hint says, or raise `TypeError`."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    if hint is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{where} must be a table, got {value!r}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{where} must be a list, got {value!r}")
        return tuple(_value(where, entry, get_args(hint)[0]) for entry in value)
    if hint not in PLAIN:
        return _table(where, value, hint)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise TypeError(f"{where} must be {PLAIN[hint]}, got {value!r}")
    return value


def _plain_fields() -> list[str]:
    return [name for name, hint in HINTS.items() if hint in PLAIN]


def _check_keys(where: str, table: Mapping[str, Any], known: Sequence[str], required: Sequence[str]) -> None:
    place = f"{where}: " if where else ""
    for key in table:
        if key not in known:
            raise ValueError(f"{place}unknown key {key!r}; known are {', '.join(known)}")
    for key in required:
        if key not in table:
            raise ValueError(f"{place}lacks the key {key!r}")


def _check_one_of(where: str, value: Any, known: Mapping[str, Any] | Sequence[Any]) -> None:
    if value not in known:
        raise ValueError(f"{where} must be one of {', '.join(map(str, known))}, got {value!r}")
