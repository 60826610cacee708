"""The settings of CSM Tables 1-6 and the readings of the text under which they are run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convla.experiments.descents.pairs import SIMILARITIES
from convla.experiments.descents.settings import Setting as Descent
from convla.experiments.descents.study import read_study
from convla.extending import check_choice

__all__ = [
    "CONTROLS",
    "STUDIES",
    "TABLES",
    "TARGETS",
    "Readings",
    "Setting",
    "control_settings",
    "study_file",
    "table_settings",
]

# Table 11's caption is a copy of Table 9's; the text of Section 5 and the captions of Tables 5-6 refer to it for the
# valid runs.
STUDIES = {(1, 2): "tables12", (3, 4): "tables34", (5, 6): "tables56"}
"""The study behind each pair of tables, of correlations and of decreases; what is printed in them: `tables.json`."""

TABLES = tuple(itertools.chain.from_iterable(STUDIES))

CONTROLS = ("loss", "shrinkage", "scale-invariant")
"""What a control run minimises: the table's own loss; |K1|^2 + |K2|^2; CS / (|K1|^2 |K2|^2)."""

TARGETS = ("tables", *(f"table{table}" for table in TABLES), "controls", "coverage")


@dataclass(frozen=True)
class Readings:
    """How the source's text is read where it leaves a choice; the defaults reproduce the tables.

    Attributes
    ----------
    similarity : {"squared", "absolute", "signed", "cosine"}
        What "feature map similarity" measures.
    kernel_loss : {"inner", "cosine"}
        What Tables 1-2 minimise: <K1, K2>^2 (Eq. 5), or the squared cosine (the captions of Tables 9 and 11).
    train : {"both", "first"}
        Which kernels are trained.
    """

    similarity: str = "squared"
    kernel_loss: str = "inner"
    train: str = "both"

    def __post_init__(self) -> None:
        check_choice("similarity", self.similarity, SIMILARITIES)
        check_choice("kernel_loss", self.kernel_loss, ("inner", "cosine"))
        check_choice("train", self.train, ("both", "first"))


@dataclass(frozen=True)
class Setting:
    """One row of a pair of tables, or a control run at that row's hyperparameters.

    Attributes
    ----------
    tables : tuple of int
        The table of column A, and the table of columns B-D.
    row : convla.experiments.descents.settings.Setting
        What its study says of it; the defaults where that leaves a choice.
    control : {"loss", "shrinkage", "scale-invariant"}
        What is minimised; "loss" in the tables themselves.
    """

    tables: tuple[int, int]
    row: Descent
    control: str = "loss"

    @property
    def n(self) -> int:
        """The kernels' length."""
        return self.row.N

    @property
    def optimizer(self) -> str:
        """The optimiser: "Adam" or "SGD"."""
        return self.row.optimizer

    @property
    def loss(self) -> str:
        """What the tables minimise: "kernel" or "convolutional"."""
        return self.row.loss

    @property
    def name(self) -> str:
        """The setting's name, and its file's: 'tables34-N9-SGD', with '-shrinkage' for a control."""
        return self.draws if self.control == "loss" else f"{self.draws}-{self.control}"

    @property
    def draws(self) -> str:
        """The name that fixes the random draws: a control gets the inputs and kernels of its table row."""
        return self.row.stream

    def descent(self, readings: Readings) -> Descent:
        """Return the descent that is run."""
        cosine = self.loss == "kernel" and readings.kernel_loss == "cosine"
        loss = self.control if self.control != "loss" else "cosine" if cosine else self.loss
        return replace(self.row, loss=loss, similarity=readings.similarity, train=readings.train)

    def describe(self) -> dict[str, Any]:
        """Return the setting as plain data, for the manifest."""
        return self.row.describe() | {"tables": list(self.tables), "control": self.control, "name": self.name}


def table_settings(targets: Sequence[str] = ("tables",)) -> tuple[Setting, ...]:
    """Return the settings that the targets need, in the order of the tables.

    Examples
    --------
    >>> len(table_settings()), [setting.name for setting in table_settings(["table3"])][:2]
    (18, ['tables34-N3-Adam', 'tables34-N3-SGD'])
    """
    for target in targets:
        check_choice("target", target, TARGETS)
    wanted = {target.removeprefix("table") for target in targets}
    return tuple(
        Setting(tables, row)
        for tables, name in STUDIES.items()
        if wanted & {"s", *map(str, tables)}
        for row in read_study(study_file(name)).settings
    )


def study_file(name: str = "tables34") -> Path:
    """Return the file of the study behind a pair of tables: "tables12", "tables34" or "tables56"."""
    return Path(__file__).with_name("studies") / f"{name}.toml"


def control_settings() -> tuple[Setting, ...]:
    """Return the runs behind the controls: all rows of the tables, and both baselines at each row of Tables 3-6."""
    rows = table_settings()
    return tuple(
        replace(row, control=control)
        for row in rows
        for control in (CONTROLS if row.loss == "convolutional" else CONTROLS[:1])
    )
