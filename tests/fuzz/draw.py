"""Layers to search among: shapes and numbers of the kinds that have gone wrong, and any others."""

from __future__ import annotations

import base64
import functools
import importlib
import importlib.util
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convla import ConvOperator
from convla.errors import ShapeError
from tests.geometries import Seeded, Setting, any_setting

LIBRARIES = {"torch": 0.03, "array_api_strict": 0.02, "jax": 0.005}
"""How often a layer's kernel is an array of another library than NumPy, where that is installed."""


@dataclass(frozen=True)
class Layer:
    """A convolution with its kernel as a NumPy array, as it is handed to `ConvOperator`.

    `factors`, where they are known, are a matrix of channels and a 1-D kernel for each axis, whose product the kernel
    is, exactly.
    """

    kernel: Any
    setting: Setting
    order: str = "C"
    transposed: bool = False
    library: str = "numpy"
    factors: tuple[Any, list[Any]] | None = None

    @property
    def groups(self) -> int:
        return self.setting.options["groups"]

    @property
    def array(self) -> Any:
        """The kernel as an array of its library."""
        return as_library(self.kernel, self.library)

    @property
    def operator(self) -> Any:
        operator = ConvOperator(self.array, self.setting.image_shape, order=self.order, **self.setting.options)
        return operator.T if self.transposed else operator

    @property
    def arguments(self) -> str:
        """What stands after the kernel in a call, as source text."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.setting.options.items())
        return f"{self.setting.image_shape!r}, {options}"

    @property
    def source(self) -> str:
        """Lines that build the operator `op`, to be pasted into a file."""
        call = f"ConvOperator(kernel, {self.arguments}, order={self.order!r})"
        return f"kernel = {array_source(self.kernel, self.library)}\nop = {call}{'.T' if self.transposed else ''}"


def as_library(values: Any, library: str) -> Any:
    """A NumPy array as one of another library."""
    if library == "numpy":
        return values
    module = importlib.import_module(library)
    if library == "jax":
        module.config.update("jax_enable_x64", True)
        return module.numpy.asarray(values)
    return (module.tensor if library == "torch" else module.asarray)(values)


def array_source(values: Any, library: str = "numpy") -> str:
    """Source text of an array, exact, short for large ones."""
    dtype = f"numpy.{values.dtype}"
    if values.size <= 200:
        text = f"numpy.array({values.tolist()!r}, {dtype})"
    else:
        packed = base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()
        data = f'zlib.decompress(base64.b64decode("{packed}"))'
        text = f"numpy.frombuffer({data}, {dtype}).reshape({values.shape}).copy()"
    wrap = {"numpy": "{}", "jax": "jax.numpy.asarray({})", "torch": "torch.tensor({})"}
    return wrap.get(library, f"{library}.asarray({{}})").format(text)


def any_layer(rng: np.random.Generator, size: str = "any", *, floating: bool = False, library: bool = True) -> Layer:
    """A layer: "tiny" has a matrix side of up to about 100, "mid" of a few hundred, "known" of thousands.

    A "known" one has singular values in closed form. "any" is mostly tiny.
    """
    if size == "any":
        size = str(rng.choice(["tiny", "mid", "known"], p=[0.93, 0.05, 0.02]))
    choose = Seeded(rng)
    if size == "known":
        layer = choose.one_of((kronecker, one_by_one, circular))(rng)
    else:
        setting = choose.one_of(SHAPES)(choose, size)
        layer = Layer(choose.one_of(VALUES)(rng, setting), setting)
    kernel = layer.kernel
    if layer.factors is not None:
        kernel = kernel.astype(np.float32 if rng.random() < 0.35 else np.float64)
    elif kernel.dtype.kind == "f":
        kernel = scaled(rng, kernel)
    elif floating:
        kernel = kernel.astype(float)
    drawn = replace(layer, kernel=kernel, order=choose.one_of("CCCF"), transposed=bool(rng.random() < 0.2))
    return replace(drawn, library=any_library(rng)) if library and size == "tiny" else drawn


def any_layer_that(holds: Callable[[Layer], bool]) -> Callable[..., Layer]:
    """What draws as `any_layer` does until something holds."""

    def drawn(*arguments: Any, **options: Any) -> Layer:
        while not holds(layer := any_layer(*arguments, **options)):
            pass
        return layer

    return drawn


def any_library(rng: np.random.Generator) -> str:
    """The name of an array library, NumPy for the most part."""
    for name, share in LIBRARIES.items():
        if rng.random() < share and is_installed(name):
            return name
    return "numpy"


@functools.cache
def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# Shapes. Each takes a chooser and a size, and gives a setting.

IMAGES = {"tiny": (20, 6, 3), "mid": (300, 14, 5)}
SIZES = {
    size: {"images": images, "outs": (1, 2, 3, 4), "inner": (1, 2, 3), "boundaries": ("zero",)}
    for size, images in IMAGES.items()
}


def _any(choose: Seeded, size: str) -> Setting:
    return any_setting(choose, images=IMAGES[size], outs=(1, 2, 3, 4), inner=(1, 2, 3))


def _plain(choose: Seeded, size: str) -> Setting:
    """The layer of most networks: same padding, no stride."""
    return any_setting(choose, **SIZES[size], groups=(1,), strides=(1,), dilations=(1,), paddings=("same",))


def _groups(choose: Seeded, size: str) -> Setting:
    return any_setting(choose, images=IMAGES[size], outs=(1, 2, 3), inner=(1, 2), groups=(2, 3, 4), strides=(1, 1, 2))


def _depthwise(choose: Seeded, size: str) -> Setting:
    return any_setting(
        choose, images=IMAGES[size], outs=(1, 1, 2), inner=(1,), groups=(2, 3, 5, 8), strides=(1,), dilations=(1,)
    )


def _uncoupled(choose: Seeded, size: str) -> Setting:
    """Steps between the outputs or the taps split the matrix into parts that share nothing."""
    return any_setting(
        choose, images=IMAGES[size], outs=(1, 2, 3), inner=(1, 2), strides=(1, 2, 3, 4), dilations=(1, 2, 3, 4)
    )


def _patchify(choose: Seeded, size: str) -> Setting:
    """The stride is the kernel's size: patches that do not overlap."""
    setting = any_setting(choose, images=IMAGES[size], outs=(1, 2, 5), inner=(1, 2), strides=(1,), dilations=(1,))
    return setting._replace(options=setting.options | {"stride": setting.kernel_shape[2:]})


def _pointwise(choose: Seeded, size: str) -> Setting:
    """1x1 kernels: wide, tall, square."""
    channels = (1, 2, 3, 5, 8) if size == "tiny" else (1, 4, 20, 40)
    images = (4, 2, 1) if size == "tiny" else (12, 4, 2)
    return any_setting(choose, images=images, taps=(1, 1, 1), outs=channels, inner=channels, strides=(1, 1, 1, 2))


def _kernel_larger(choose: Seeded, size: str) -> Setting:
    """Full padding around an image that is smaller than the kernel."""
    images, taps = ((4, 3, 2), (9, 5, 3)) if size == "tiny" else ((60, 9, 3), (90, 13, 5))
    return any_setting(choose, images=images, taps=taps, outs=(1, 2), inner=(1, 2), paddings=("full", "pairs", "same"))


def _signal(choose: Seeded, size: str) -> Setting:
    """A long signal, few channels, a short kernel."""
    length = 60 if size == "tiny" else 500
    return any_setting(
        choose, axes=(1,), images=(length,), outs=(1, 1, 2), inner=(1, 1, 2), groups=(1, 1, 2), dilations=(1, 1, 2)
    )


def _thin(choose: Seeded, size: str) -> Setting:
    """One axis has one entry."""
    images = (20, 6, 4) if size == "tiny" else (60, 12, 6)
    setting = any_setting(choose, axes=(2, 3), images=images, outs=(1, 2), inner=(1, 2), paddings=("full", "same", 2))
    axis = choose.integer(0, len(setting.image_shape) - 1)
    image = tuple(1 if place == axis else n for place, n in enumerate(setting.image_shape))
    thin = setting._replace(image_shape=image)
    try:
        thin.geometry  # noqa: B018
    except ShapeError:  # the kernel does not fit there
        return setting
    return thin


SHAPES: list[Callable[[Seeded, str], Setting]] = [
    _any,
    _any,
    _plain,
    _groups,
    _depthwise,
    _uncoupled,
    _patchify,
    _pointwise,
    _kernel_larger,
    _signal,
    _thin,
]


# Numbers. Each takes a generator and a setting, and gives a kernel.


def _normal(rng: np.random.Generator, setting: Setting) -> Any:
    return rng.standard_normal(setting.kernel_shape)


def _positive(rng: np.random.Generator, setting: Setting) -> Any:
    return rng.random(setting.kernel_shape)


def _ones(rng: np.random.Generator, setting: Setting) -> Any:  # noqa: ARG001
    return np.ones(setting.kernel_shape)


def _integers(rng: np.random.Generator, setting: Setting) -> Any:
    return rng.integers(-3, 4, setting.kernel_shape)


def _sparse(rng: np.random.Generator, setting: Setting) -> Any:
    return rng.standard_normal(setting.kernel_shape) * (rng.random(setting.kernel_shape) < 0.3)


def _one_live_tap(rng: np.random.Generator, setting: Setting) -> Any:
    kernel = np.zeros(setting.kernel_shape)
    tap = tuple(int(rng.integers(n)) for n in setting.kernel_shape[2:])
    kernel[(slice(None), slice(None), *tap)] = rng.standard_normal(setting.kernel_shape[:2])
    return kernel


def _flat(rng: np.random.Generator, setting: Setting) -> Any:
    """A scaled orthogonal matrix at one tap: all singular values equal but for the edges; at times perturbed."""
    rows, columns = setting.kernel_shape[:2]
    orthogonal = np.linalg.qr(rng.standard_normal((max(rows, columns),) * 2))[0][:rows, :columns]
    kernel = np.zeros(setting.kernel_shape)
    kernel[(slice(None), slice(None), *(n // 2 for n in setting.kernel_shape[2:]))] = orthogonal
    return kernel + rng.choice([0.0, 1e-3, 1e-7, 1e-12]) * rng.standard_normal(kernel.shape)


def _near_duplicates(rng: np.random.Generator, setting: Setting) -> Any:
    """Every filter is the same but for a perturbation, none at times."""
    kernel = np.broadcast_to(rng.standard_normal((1, *setting.kernel_shape[1:])), setting.kernel_shape)
    return kernel + rng.choice([0.0, 1e-3, 1e-5, 1e-8, 1e-12]) * rng.standard_normal(kernel.shape)


def _unequal_groups(rng: np.random.Generator, setting: Setting) -> Any:
    """Each group, or filter, has a size of its own."""
    kernel = rng.standard_normal(setting.kernel_shape)
    parts = setting.options["groups"]
    powers = rng.choice([0.0, 0.1, 1.0, 6.0, 12.0, 60.0]) * rng.random(parts if parts > 1 else len(kernel))
    return kernel * np.repeat(10.0**-powers, len(kernel) // len(powers)).reshape(-1, *(1,) * (kernel.ndim - 1))


def _repeated(rng: np.random.Generator, setting: Setting) -> Any:
    """One spatial kernel times an orthogonal or integer matrix of the channels: singular values repeat."""
    rows, columns = setting.kernel_shape[:2]
    matrix = np.linalg.qr(rng.standard_normal((max(rows, columns),) * 2))[0][:rows, :columns]
    if rng.random() < 0.5:
        matrix = rng.integers(-1, 2, (rows, columns)).astype(float)
    return np.multiply.outer(matrix, rng.standard_normal(setting.kernel_shape[2:]))


def _low_rank(rng: np.random.Generator, setting: Setting) -> Any:
    rows = setting.kernel_shape[0]
    columns = math.prod(setting.kernel_shape[1:])
    return np.outer(rng.standard_normal(rows), rng.standard_normal(columns)).reshape(setting.kernel_shape)


def _difference(rng: np.random.Generator, setting: Setting) -> Any:  # noqa: ARG001
    """[1, 0, -1] along the last axis: the symbol has maxima of one height."""
    return np.broadcast_to(1.0 - np.arange(setting.kernel_shape[-1]) % 3, setting.kernel_shape).copy()


def _mixed_scales(rng: np.random.Generator, setting: Setting) -> Any:
    kernel = rng.standard_normal(setting.kernel_shape)
    return kernel * 10.0 ** rng.choice([-30.0, -8.0, 0.0, 0.0, 8.0, 30.0], kernel.shape)


def _subnormal(rng: np.random.Generator, setting: Setting) -> Any:
    return rng.integers(-4, 5, setting.kernel_shape) * 5e-324


def _zero(rng: np.random.Generator, setting: Setting) -> Any:  # noqa: ARG001
    return np.zeros(setting.kernel_shape)


VALUES: list[Callable[[np.random.Generator, Setting], Any]] = [
    *(_normal, _normal, _normal, _positive, _ones, _integers, _sparse, _one_live_tap, _flat, _flat),
    *(_near_duplicates, _near_duplicates, _unequal_groups, _unequal_groups, _repeated, _repeated, _low_rank),
    *(_difference, _mixed_scales, _subnormal, _zero),
]


def scaled(rng: np.random.Generator, kernel: Any) -> Any:
    """The kernel in one of the float dtypes, at times at an end of its range."""
    single = bool(rng.random() < 0.35)
    with np.errstate(over="ignore", under="ignore"):
        if rng.random() < 0.1:
            # 40 powers of ten from the limit products of kernels with unit vectors of any size stay finite.
            limit = 30 if single else 300
            kernel = kernel * 10.0 ** float(rng.integers(-limit - 8, limit))
        kernel = kernel.astype(np.float32 if single else np.float64)
    return kernel if np.all(np.isfinite(kernel)) else np.ones_like(kernel)


# Layers of any size whose singular values are known.


def kronecker(rng: np.random.Generator) -> Layer:
    """A kernel that is a product of the axes' kernels and a matrix of the channels, in integers: no rounding."""
    sizes = {"images": (900, 48, 8), "taps": (9, 5, 3), "outs": (1, 3, 8), "inner": (1, 4)}
    setting = any_setting(Seeded(rng), axes=(1, 2, 2), **sizes)
    kernels = [rng.integers(-7, 8, n) for n in setting.kernel_shape[2:]]
    channels = rng.integers(-7, 8, setting.kernel_shape[:2])
    kernel = channels
    for along in kernels:
        kernel = np.multiply.outer(kernel, along)
    return Layer(kernel.astype(float), setting, factors=(channels, kernels))


def one_by_one(rng: np.random.Generator) -> Layer:
    """A 1x1 layer: the singular values of its matrix of channels, once for each position."""
    choose = Seeded(rng)
    shape = (choose.one_of((1, 8, 32, 100)), choose.one_of((1, 8, 32, 100)))
    channels = choose.one_of((_normal, _near_duplicates, _low_rank, _flat))(rng, Setting((*shape, 1), (1,), {}))
    setting = Setting(
        (*shape, 1, 1),
        (choose.integer(1, 24), choose.integer(1, 24)),
        {"padding": "same", "stride": (1, 1), "dilation": (1, 1), "groups": 1, "boundary": "zero"},
    )
    return Layer(channels.reshape(*shape, 1, 1), setting)


def circular(rng: np.random.Generator) -> Layer:
    """A layer on the torus: the singular values of its symbol."""
    choose = Seeded(rng)
    setting = any_setting(
        choose,
        axes=(1, 2),
        images=(600, 30, 8),
        outs=(1, 4, 16),
        inner=(1, 3, 16),
        strides=(1,),
        paddings=("same",),
        dilations=(1,),
        boundaries=("circular",),
    )
    return Layer(choose.one_of((_normal, _near_duplicates, _flat, _unequal_groups))(rng, setting), setting)
