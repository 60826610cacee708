"""Pictures within a page of HTML: a layer's spectrum, the network's bound step by step, two values on one scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from convla.networks.certificate import Step
from convla.networks.shell import shown, text_of
from convla.spectra import SpectralDensity
from convla.spectra.status import Status

__all__ = ["LogScale", "histogram", "waterfall"]

_WIDTH, _HEIGHT = 96, 26


def histogram(density: SpectralDensity) -> str:
    """Return a picture of how singular values are distributed, from 0 to the largest; those that are zero in red.

    Where the shares are estimated, what they may be off stands on the bars, paler.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, spectral_density
    >>> from convla.networks.drawings import histogram
    >>> picture = histogram(spectral_density(ConvOperator(np.array([[[0.0, 2.0, 0.0]]]), (8,)), bins=4))
    >>> picture.count("<rect"), "exact" in picture
    (1, True)
    """
    shares, errors = np.maximum(density.shares, 0.0), np.asarray(density.errors)
    tops = np.minimum(shares + errors, 1.0)
    scale, step = (_HEIGHT - 2) / (float(tops.max()) or 1.0), _WIDTH / len(shares)
    bars = []
    for place, (share, top) in enumerate(zip(shares.tolist(), tops.tolist(), strict=True)):
        for style, low, high in (("error", share, top), ("zero" if place == 0 and density.zeros else "", 0.0, share)):
            if high > low:
                kind = f' class="{style}"' if style else ""
                bars.append(
                    f'<rect{kind} x="{place * step:.2f}" y="{_HEIGHT - 1 - high * scale:.2f}" '
                    f'width="{step * 0.9:.2f}" height="{max((high - low) * scale, 0.4):.2f}"/>'
                )
    words = f"Singular values from 0 to {shown(float(density.edges[-1]))}, {_support(density)}"
    line = f'<line x1="0" y1="{_HEIGHT - 0.5}" x2="{_WIDTH}" y2="{_HEIGHT - 0.5}"/>'
    return (
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{text_of(words)}"><title>{text_of(words)}</title>{"".join(bars)}{line}</svg>'
    )


def _support(density: SpectralDensity) -> str:
    least = "" if density.zeros_proved else "about " if density.status == Status.EXACT else "at least "
    zeros = f"; {least}{density.zeros} of them 0" if density.zeros else ""
    if density.status == Status.EXACT:
        return f"exact{zeros}"
    return f"estimated, the pale parts hold in {density.confidence:.0%} of runs{zeros}"


class LogScale:
    """Places on a line, in percent, of positive numbers by their logarithms.

    Parameters
    ----------
    values : iterable of float
        What has to have a place; zero and infinity are at the ends.
    """

    def __init__(self, values: Iterable[float]) -> None:
        logs = [math.log10(value) for value in values if 0.0 < value < math.inf]
        self.low, self.high = min(logs, default=0.0), max(logs, default=0.0)

    def place(self, value: float) -> float:
        """Return where a number is, between 0 and 100."""
        if not 0.0 < value < math.inf:
            return 0.0 if value <= 0.0 else 100.0
        if self.high == self.low:
            return 50.0
        return 100.0 * (min(max(math.log10(value), self.low), self.high) - self.low) / (self.high - self.low)

    def bar(self, first: float, second: float, style: str = "") -> str:
        """Return what marks the part of a line between two numbers."""
        left, right = sorted((self.place(first), self.place(second)))
        return f'<i class="{style}" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'

    def dot(self, value: float, style: str = "") -> str:
        """Return what marks a number on a line."""
        return f'<b class="{style}" style="left:{self.place(value):.2f}%"></b>'


def waterfall(steps: Sequence[Step]) -> str:
    """Return a picture of the bound of a network: from what each step takes to what it gives.

    Steps that leave the bound as it is have no line.
    """
    chosen = [step for step in steps if step.is_shown]
    scale = LogScale([1.0, *(value for step in chosen for value in (step.before, step.bound))])
    lines = []
    for step in chosen:
        share = f", share x {step.share:.3g}" if step.share > 1.0 else ""
        gain, bound = shown(step.gain, "above"), shown(step.bound, "above")
        words = f"{step.name}: {step.what}, gain {gain}, up to here {bound}{share}"
        style = "up" if step.bound > step.before else "down"
        lines.append(
            f'<span class="name">{text_of(step.name)}</span>'
            f'<span class="track" title="{text_of(words)}">{scale.bar(step.before, step.bound, style)}</span>'
            f"<span>{step.bound:.4g}</span>"
        )
    return f'<div class="steps">{"".join(lines)}</div>'
