"""What a result promises: one enumeration for every function that can fail to find its value."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Status"]


class Status(StrEnum):
    """How far a result can be trusted; each member is the string of its value.

    Attributes
    ----------
    EXACT
        From a decomposition of the whole matrix, or a closed form: right but for rounding.
    CONFIRMED
        A factorisation or a proved enclosure shows that the value is right to the wanted accuracy.
    ESTIMATED
        The iteration's own estimate of the error is below the tolerance; nothing proves that no value was missed.
    NOT_CONVERGED
        The estimate of the error is above the tolerance.
    RANK_DEFICIENT
        The value cannot be told from zero in the arithmetic that was used.

    Examples
    --------
    >>> from convla.spectra.status import Status
    >>> Status("estimated") == "estimated", Status.ESTIMATED.proved, Status.EXACT.proved
    (True, False, True)
    >>> print(Status.ESTIMATED.sentence)
    the iteration's own estimate of the error is below the tolerance; nothing proves that no value was missed
    """

    EXACT = "exact"
    CONFIRMED = "confirmed"
    ESTIMATED = "estimated"
    NOT_CONVERGED = "not converged"
    RANK_DEFICIENT = "rank deficient"

    @property
    def proved(self) -> bool:
        """Whether the value is known to be right to the wanted accuracy, and not only estimated to be."""
        return self in (Status.EXACT, Status.CONFIRMED)

    @property
    def sentence(self) -> str:
        """What the status says of a value, as a sentence without its full stop."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.EXACT: "from a decomposition of the whole matrix, or a closed form: right but for rounding",
    Status.CONFIRMED: "a factorisation or a proved enclosure shows that the value is right to the wanted accuracy",
    Status.ESTIMATED: "the iteration's own estimate of the error is below the tolerance; "
    "nothing proves that no value was missed",
    Status.NOT_CONVERGED: "the estimate of the error is above the tolerance",
    Status.RANK_DEFICIENT: "the value cannot be told from zero in the arithmetic that was used",
}
