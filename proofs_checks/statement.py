"""What a row of the ledger is: a claim with its source, a verdict, the evidence for it, and the functions it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

__all__ = ["Evidence", "Kind", "Statement", "UnavailableError", "Verdict", "evidence"]

Check = Callable[[int], str]
"""Takes the number of random examples, returns a line on what was found, raises AssertionError if the claim fails."""


class UnavailableError(Exception):
    """Raised by a check that cannot run here; its message says what is missing."""


class Verdict(Enum):
    """What the evidence says of a claim."""

    HOLDS = "holds"
    CORRECTED = "holds as corrected"
    REFUTED = "refuted"
    STATISTICAL = "statistical"
    UNDECIDED = "undecided"


class Kind(Enum):
    """How strong a piece of evidence is, strongest first."""

    PROOF = "proof at a size"
    COUNTEREXAMPLE = "counterexample"
    PROPERTY = "property"
    MEASUREMENT = "measurement"


@dataclass(frozen=True)
class Evidence:
    """One check of a claim.

    Attributes
    ----------
    kind : Kind
    covers : str
        The sizes or inputs that the check covers, in words.
    check : callable
        Runs it.
    """

    kind: Kind
    covers: str
    check: Check

    @property
    def name(self) -> str:
        """The name of the checking function."""
        return self.check.__name__


def evidence(kind: Kind, covers: str) -> Callable[[Check], Evidence]:
    """Make the decorated function a piece of evidence of this kind.

    Examples
    --------
    >>> from proofs_checks.statement import Kind, evidence
    >>> @evidence(Kind.PROOF, "0 and 1")
    ... def squares_are_equal(examples):
    ...     assert all(bit * bit == bit for bit in (0, 1))
    ...     return "2 numbers"
    >>> squares_are_equal.name, squares_are_equal.check(50)
    ('squares_are_equal', '2 numbers')
    """
    return lambda check: Evidence(kind, covers, check)


@dataclass(frozen=True)
class Statement:
    """A row of the ledger.

    Attributes
    ----------
    id : str
        Such as "CSM-6".
    number : str
        Where the source states it, such as "Eqs. (6), (14)"; "ours" for a result of this project.
    title : str
        A few words.
    claim : str
        The statement in the field's notation; LaTeX between dollar signs.
    verdict : Verdict
    evidence : tuple of Evidence
    functions : tuple of str
        The public functions that it is about, as they are imported, such as "convla.identities.gram_kernel": a wrong
        version of any must not pass its evidence; see `proofs_checks.mutate`. None where the claim is about printed
        numbers alone.
    correction : str
        For `Verdict.CORRECTED`: what the source must read. A statement that holds may have one too, of its proof.
    counterexample : str
        For `Verdict.REFUTED`: the smallest input found for which the claim fails, and by how much.
    note : str
        What a reader should know besides: limits, remarks, extensions.
    suggested : bool
        The source suggests it and does not state it.
    """

    id: str
    number: str
    title: str
    claim: str
    verdict: Verdict
    evidence: tuple[Evidence, ...]
    functions: tuple[str, ...] = ()
    correction: str = ""
    counterexample: str = ""
    note: str = ""
    suggested: bool = False

    def __post_init__(self) -> None:
        wanted = {Verdict.CORRECTED: self.correction, Verdict.REFUTED: self.counterexample}
        if not self.evidence or not wanted.get(self.verdict, True):
            raise ValueError(
                f"statement {self.id} ({self.verdict.value}) must have evidence, and the correction or counterexample that its "
                "verdict speaks of"
            )

    @property
    def source(self) -> str:
        """The key of the source document, such as "CSM"; "SPEC" for the theory of spectra."""
        return self.id.partition("-")[0]

    @property
    def ours(self) -> bool:
        """Whether the claim is a result of this project rather than of the source."""
        return self.number == "ours"
