"""The pictures of a layer: what is drawn is what NumPy computes from the kernel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from convla import ConvOperator, singular_values
from convla.plotting import plot_spectrum, plot_symbol, show_matrix, slider

pyplot = pytest.importorskip("matplotlib.pyplot", reason="Matplotlib is not installed")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    with pyplot.rc_context({"backend": "agg"}):
        yield
    pyplot.close("all")


def layer(*shape: int, **options: str) -> ConvOperator:
    kernel = np.random.default_rng(0).normal(size=shape)
    return ConvOperator(kernel, (6,) * (len(shape) - 2), **options)


def test_the_matrix_is_drawn_between_symmetric_limits() -> None:
    operator = layer(2, 1, 3)
    (image,) = show_matrix(operator).images
    np.testing.assert_array_equal(image.get_array(), operator.to_dense())
    assert image.get_clim() == (-np.abs(operator.kernel).max(), np.abs(operator.kernel).max())


def test_a_matrix_that_no_screen_shows_is_refused_before_it_is_made() -> None:
    with pytest.raises(ValueError, match="at most 4194304 entries to be drawn, got 90000 x 90000"):
        show_matrix(ConvOperator(np.ones((1, 1, 3, 3)), (300, 300)))


def test_the_spectrum_is_that_of_the_matrix_and_joins_what_is_drawn() -> None:
    operator = layer(2, 3, 3, 3)
    ax = plot_spectrum(operator, label="all")
    assert plot_spectrum(singular_values(operator, 2), ax=ax) is ax
    whole, two = (line.get_ydata() for line in ax.lines)
    expected = np.linalg.svd(operator.to_dense(), compute_uv=False)
    rounding = 100 * np.finfo(float).eps * expected[0]
    np.testing.assert_allclose(whole, expected, rtol=0, atol=rounding)
    np.testing.assert_allclose(two, expected[:2], rtol=0, atol=rounding)
    assert ax.lines[0].get_label() == "all"


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 3, 3, 3)])
def test_the_symbol_is_the_transform_of_the_kernel(shape: tuple[int, ...]) -> None:
    operator = layer(*shape)
    axes = tuple(range(2, len(shape)))
    # 2 pi j / 8 for j = -4 ... 4: the frequencies of a transform of 8 places, from the middle on and around.
    transform = np.fft.fftn(operator.kernel, s=(8,) * len(axes), axes=axes)
    around = np.take(np.fft.fftshift(transform, axes=axes), np.arange(9), axis=2, mode="wrap")
    if len(axes) == 2:
        around = np.take(around, np.arange(9), axis=3, mode="wrap")
    expected = np.linalg.svd(np.moveaxis(around, (0, 1), (-2, -1)), compute_uv=False)
    ax = plot_symbol(operator, points=9)
    if len(axes) == 1:
        drawn = np.stack([line.get_ydata() for line in ax.lines], axis=-1)
    else:
        drawn, expected = ax.images[0].get_array(), expected[..., 0]
    # A cross-correlation's symbol is the conjugate of the transform, whose singular values are the same.
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=100 * np.finfo(float).eps * expected.max())


def test_what_has_no_picture_is_refused() -> None:
    with pytest.raises(TypeError, match="operator must be a ConvOperator, got "):
        plot_symbol(layer(2, 1, 3).T @ layer(2, 1, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one or two spatial axes to be drawn, got 3"):
        plot_symbol(layer(1, 1, 2, 2, 2))
    with pytest.raises(TypeError, match="spectrum must be a LinearMap, such as a ConvOperator, got ndarray"):
        plot_spectrum(np.ones(3))  # type: ignore[arg-type]


def test_a_slider_has_a_picture_for_each_value_and_shows_the_first() -> None:
    shown = slider(lambda level, figure: figure.subplots().axhline(level), (0.25, 0.5, 0.75), label="a < b")
    assert len(set(shown.pictures)) == 3
    page = shown._repr_html_()
    hidden = [tag for tag in page.split("<img ")[1:] if "display:none" in tag.split(">")[0]]
    assert len(hidden) == 2
    assert page.count('alt="a &lt; b = ') == 3
    assert 'max="2"' in page
    assert "http" not in page  # it needs no network
    with pytest.raises(ValueError, match="values must be at least one"):
        slider(lambda _value, _figure: None, (), label="nothing")
