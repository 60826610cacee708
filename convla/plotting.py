"""Pictures of a layer: its matrix, its singular values, its symbol. Matplotlib is imported when one is drawn."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from convla._array import to_numpy
from convla._validate import check_integer
from convla.errors import install_line
from convla.linear_map import LinearMap, check_linear_map
from convla.operators import ConvOperator
from convla.spectra import SingularValues, singular_values
from convla.spectra.symbol import Symbol

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Slider", "plot_spectrum", "plot_symbol", "show_matrix", "slider"]

Value = TypeVar("Value")

LARGEST = 2**22
"""Entries of a matrix that is drawn; more than a screen has points."""


def show_matrix(operator: LinearMap, *, ax: Axes | None = None) -> Axes:
    """Draw the matrix of a map, zero in white, positive entries in red, negative ones in blue.

    Parameters
    ----------
    operator : LinearMap
        Whose matrix has at most 2**22 entries.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If `operator` is none, or its matrix is larger.
    ImportError
        If Matplotlib is missing.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.plotting import show_matrix
    >>> blur = ConvOperator(np.array([[[0.25, 0.5, 0.25]]]), (16,))
    >>> show_matrix(blur).get_title()
    '16 x 16'
    """
    check_linear_map(operator)
    rows, columns = operator.shape
    if rows * columns > LARGEST:
        raise ValueError(f"operator must have at most {LARGEST} entries to be drawn, got {rows} x {columns}")
    ax = _axes(ax)
    matrix = np.asarray(to_numpy(operator.to_dense()), np.float64)
    reach = float(np.max(np.abs(matrix), initial=0)) or 1.0
    ax.imshow(matrix, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
    ax.set(title=f"{rows} x {columns}", xlabel="input", ylabel="output")
    return ax


def plot_spectrum(spectrum: LinearMap | SingularValues, *, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Plot singular values in decreasing order.

    Parameters
    ----------
    spectrum : LinearMap or SingularValues
        A map, all of whose singular values are then computed, or values that are there.
    ax : matplotlib.axes.Axes, optional
        Where to draw, beside what is there; by default in a new figure.
    label : str, optional
        The name of the line in a legend.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If `spectrum` is neither.
    ImportError
        If Matplotlib is missing.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.plotting import plot_spectrum
    >>> blur = ConvOperator(np.array([[[0.25, 0.5, 0.25]]]), (16,))
    >>> ax = plot_spectrum(blur, label="blur")
    >>> len(ax.lines[0].get_ydata())
    16
    """
    if not isinstance(spectrum, SingularValues):
        check_linear_map(spectrum, "spectrum")
        spectrum = singular_values(spectrum)
    ax = _axes(ax)
    values = to_numpy(spectrum.values)
    ax.plot(np.arange(1, len(values) + 1), values, marker="." if len(values) <= 64 else "", label=label)
    ax.set(xlabel="index", ylabel="singular value", ylim=(0, None))
    return ax


def plot_symbol(operator: ConvOperator, *, points: int = 129, ax: Axes | None = None) -> Axes:
    """Plot the singular values of the symbol of a layer over the frequencies from -pi to pi.

    Of one spatial axis all of them, as curves; of two the largest, as a picture. With circular padding the layer's
    singular values are these at the frequencies of the image; with zeros outside of the image its largest one is at
    most, and for large images nearly, the highest of these.

    Parameters
    ----------
    operator : ConvOperator
        A convolution, with one or two spatial axes, not a transposed one.
    points : int, default 129
        Frequencies along each axis.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If `operator` is no `ConvOperator` or has three spatial axes, or `points` is no integer of at least 2.
    ImportError
        If Matplotlib is missing.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.plotting import plot_symbol
    >>> blur = ConvOperator(np.array([[[0.25, 0.5, 0.25]]]), (16,))
    >>> curve = plot_symbol(blur, points=3).lines[0]
    >>> bool(np.allclose(curve.get_ydata(), [0, 1, 0]))
    True
    """
    if not isinstance(operator, ConvOperator):
        raise TypeError(f"operator must be a ConvOperator, got {type(operator).__name__}")
    geometry = operator.geometry
    if geometry.ndim > 2:
        raise ValueError(f"operator must have one or two spatial axes to be drawn, got {geometry.ndim}")
    points = check_integer("points", points, minimum=2)
    ax = _axes(ax)
    line = np.linspace(-np.pi, np.pi, points)
    frequencies = np.stack(np.meshgrid(*[line] * geometry.ndim, indexing="ij"), axis=-1).reshape(-1, geometry.ndim)
    kernel = np.asarray(to_numpy(operator.kernel), np.float64)
    values = np.linalg.svd(to_numpy(Symbol(kernel, geometry).at(frequencies)), compute_uv=False)
    if geometry.ndim == 1:
        ax.plot(line, values.reshape(points, -1))
        ax.set(xlabel="frequency", ylabel="singular values of the symbol", ylim=(0, None))
    else:
        largest = values.reshape(points, points, -1).max(axis=-1)
        image = ax.imshow(largest, extent=(-np.pi, np.pi, np.pi, -np.pi), vmin=0)
        ax.figure.colorbar(image, ax=ax, label="largest singular value of the symbol")
        ax.set(xlabel="frequency, last axis", ylabel="frequency, first axis")
    return ax


@dataclass(frozen=True, repr=False)
class Slider:
    """Pictures under a slider, as `slider` makes them; a notebook shows it, and so does its page, without a server.

    Attributes
    ----------
    label : str
        What the slider changes.
    values : tuple of str
        Its positions.
    pictures : tuple of bytes
        A PNG for each.
    """

    label: str
    values: tuple[str, ...]
    pictures: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"<Slider: {len(self.values)} pictures, {self.label} = {self.values[0]} to {self.values[-1]}>"

    def _repr_html_(self) -> str:
        label = html.escape(self.label)
        images = "".join(
            f'<img alt="{label} = {html.escape(value)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"'
            f' style="max-width:100%{"" if index == 0 else ";display:none"}">'
            for index, (value, png) in enumerate(zip(self.values, self.pictures, strict=True))
        )
        return (
            f'<figure class="convla-slider" style="margin:0">{images}'
            '<label style="display:flex;gap:0.6em;align-items:center;max-width:40em">'
            f'<span>{label}</span><input type="range" min="0" max="{len(self.values) - 1}" value="0" style="flex:1"'
            f' aria-valuetext="{html.escape(self.values[0])}" oninput="{_TURN}">'
            f"<output>{html.escape(self.values[0])}</output></label></figure>"
        )


# What a slider does when it is moved: one picture is shown, and its value beside the slider and to a screen reader.
_TURN = (
    "const figure = this.closest('figure'), images = figure.querySelectorAll('img');"
    "images.forEach((image, i) => { image.style.display = i == this.value ? '' : 'none'; });"
    "const value = images[this.value].alt.split(' = ').pop();"
    "figure.querySelector('output').value = value; this.setAttribute('aria-valuetext', value);"
)


def slider(
    draw: Callable[[Value, Figure], object],
    values: Iterable[Value],
    *,
    label: str,
    size: tuple[float, float] = (6.4, 3.2),
) -> Slider:
    """Draw a picture for each value, to be looked at under a slider in a notebook.

    All pictures are drawn at once, so that the slider moves without Python, in the page of a notebook too.

    Parameters
    ----------
    draw : callable
        `draw(value, figure)` draws into an empty figure.
    values : iterable
        At least one; `str(value)` stands beside the slider.
    label : str
        What the values are.
    size : (float, float), default (6.4, 3.2)
        Width and height of the figure, in inches.

    Returns
    -------
    Slider

    Raises
    ------
    ValueError
        If there are no values.
    ImportError
        If Matplotlib is missing.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.plotting import plot_spectrum, slider
    >>> def draw(size, figure):
    ...     plot_spectrum(ConvOperator(np.array([[[0.25, 0.5, 0.25]]]), (size,)), ax=figure.subplots())
    >>> slider(draw, (4, 8, 16), label="samples")
    <Slider: 3 pictures, samples = 4 to 16>
    """
    values = tuple(values)
    if not values:
        raise ValueError("values must be at least one, got none")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _missing() from error
    pictures = []
    for value in values:
        figure = Figure(figsize=size, layout="constrained")
        draw(value, figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100)
        pictures.append(file.getvalue())
    return Slider(label, tuple(map(str, values)), tuple(pictures))


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise _missing() from error
    return pyplot.subplots(layout="constrained")[1]


def _missing() -> ImportError:
    return ImportError(f"pictures need Matplotlib: {install_line('cli')}")
