# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Bounds: how tight, how cheap
#
# The largest singular value of a layer is its Lipschitz constant. `singular_value_bounds` encloses it, provably. How
# wide is the enclosure, what does it cost, and what does a formula that is no bound give?

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import convla

rng = np.random.default_rng(0)
kernel = rng.standard_normal((8, 8, 3, 3)) / np.sqrt(72)

# %% [markdown]
# ## The enclosure closes like 1/n²
#
# Below a Ritz value, above the norm on a torus that the padded image fits into. On larger images both approach the
# supremum of the symbol.

# %%
sizes = [8, 12, 16, 24, 32, 48]
rows = []
for n in sizes:
    layer = convla.ConvOperator(kernel, (n, n))
    value = float(convla.largest_singular_value(layer))
    began = time.perf_counter()
    bounds = convla.singular_value_bounds(layer, method="symbol")
    rows.append((value, bounds.lower, bounds.upper, 1e3 * (time.perf_counter() - began)))
    print(f"n = {n:2}: {bounds.lower:.6f} <= {value:.6f} <= {bounds.upper:.6f}   {rows[-1][3]:5.1f} ms")
values, lower, upper, cost = map(np.array, zip(*rows, strict=True))
assert (lower <= values * (1 + 1e-9)).all()
assert (values <= upper).all()

figure, axis = plt.subplots(figsize=(5.5, 3.5))
axis.loglog(sizes, upper / values - 1, "o-", label="upper side")
axis.loglog(sizes, np.maximum(1 - lower / values, 1e-9), "s-", label="lower side, 24 applications")
axis.loglog(sizes, (upper[0] / values[0] - 1) * (sizes[0] / np.array(sizes)) ** 2, "k:", label="1/n²")
axis.set(xlabel="image size n", ylabel="relative distance to the value")
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## The circular norm at the image's own size is not a bound
#
# A frequency that the image's own torus misses is enough.

# %%
difference = np.array([[[1.0, 0.0, -1.0]]])
print(" n   circular   true       enclosure")
for n in (6, 8, 10, 14, 22):
    circular = float(convla.largest_singular_value(convla.ConvOperator(difference, (n,), boundary="circular")))
    layer = convla.ConvOperator(difference, (n,))
    bounds = convla.singular_value_bounds(layer, method="symbol")
    true = 2 * np.cos(np.pi / (n + 1))
    mark = "  <- below the truth" if circular < true else ""
    print(f"{n:2}   {circular:.6f}   {true:.6f}   [{bounds.lower:.6f}, {bounds.upper:.6f}]{mark}")

# %% [markdown]
# ## Boundaries, strides, groups
#
# What certifies the upper side depends on what stands outside the image.

# %%
for options in (
    {},
    {"stride": 2},
    {"groups": 2},
    {"boundary": "circular"},
    {"boundary": "reflect"},
    {"boundary": "replicate"},
):
    weights = kernel[:, : 8 // options.get("groups", 1)]
    layer = convla.ConvOperator(weights, (24, 24), **options)
    value = float(convla.largest_singular_value(layer))
    bounds = convla.singular_value_bounds(layer)
    label = ", ".join(f"{name}={option}" for name, option in options.items()) or "zero padding"
    print(f"{label:22} {value:.4f} <= {bounds.upper:.4f} ({bounds.upper / value - 1:+.2%})  {bounds.upper_certificate}")

# %% [markdown]
# ## The smallest singular value has no such formula
#
# The circular value says nothing about a zero-padded layer.

# %%
for n in (8, 12, 16):
    zero = convla.smallest_singular_value(convla.ConvOperator(kernel, (n, n)))
    circular = convla.smallest_singular_value(convla.ConvOperator(kernel, (n, n), boundary="circular"))
    print(f"n = {n:2}: zero padding {zero.value:.2e} ({zero.method}), circular {circular.value:.2e}")
