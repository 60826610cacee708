# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # From a 3x3 kernel to its steered spectrum
#
# One kernel, five steps: the layer that it makes, the matrix of that layer, its singular values with a proof, what a
# frequency has to do with them, and a descent that moves all of them near 1.

# %%
import matplotlib.pyplot as plt
import numpy as np

import convla
from convla.penalties import Backtracking, Block
from convla.plotting import plot_spectrum, plot_symbol, show_matrix

# %% [markdown]
# ## 1. A kernel is a layer
#
# Kernels have the shape `(c_out, c_in, *kernel)`, as in PyTorch, and images `(c_in, *image)`. This one compares a pixel with
# its four neighbours.

# %%
kernel = np.array([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])[None, None]
x = np.zeros((1, 8, 8))
x[0, 2:6, 2:6] = 1  # a square
convla.cross_correlate(x, kernel, padding="same")[0].astype(int)

# %% [markdown]
# ## 2. A layer is a matrix
#
# `ConvOperator` is that matrix without storing it. For an image of 8x8 it has 64 rows and 64 columns, and a band for each
# row of the kernel.

# %%
M = convla.ConvOperator(kernel, (8, 8), padding="same")
show_matrix(M)
y = M @ x.ravel()
np.array_equal(y, convla.cross_correlate(x, kernel, padding="same").ravel())

# %% [markdown]
# ## 3. A matrix has singular values
#
# They say how much the layer lengthens an image at most and at least. Each answer says what supports it, and the largest is
# enclosed by a proof.

# %%
print(convla.largest_singular_value(M))
print(convla.condition_number(M))
bounds = convla.singular_value_bounds(M)
print(f"the largest is proved to be between {bounds.lower} and {bounds.upper}")

# %% [markdown]
# Here they are all known: those of this kernel are $4 - 2\cos\frac{i\pi}{9} - 2\cos\frac{j\pi}{9}$ for $i, j = 1, \dots, 8$.

# %%
i = np.arange(1, 9)
known = 4 - 2 * np.cos(np.pi * i / 9)[:, None] - 2 * np.cos(np.pi * i / 9)
found = convla.singular_values(M).values
np.max(np.abs(found - np.sort(known.ravel())[::-1]))

# %% [markdown]
# ## 4. The symbol says where they come from
#
# A wave of frequency $\theta$ goes through the layer with the factor $f(\theta)$, but for the edges of the image. Fast waves
# are lengthened, slow ones hardly pass: the layer is badly conditioned.

# %% tags=["thumbnail"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
plot_symbol(M, ax=left)
plot_spectrum(M, ax=right)

# %% [markdown]
# ## 5. Steered
#
# `minimize_penalty` descends on $\sigma_{\max}(M^T M - \alpha I)$ and moves all singular values towards $\sqrt\alpha$, here 1.
# The kernels stay 3x3. With one channel in and three out the matrix has three rows for each column, and room to move.

# %%
rng = np.random.default_rng(0)
layer = convla.ConvOperator(rng.normal(scale=0.3, size=(3, 1, 3, 3)), (8, 8), padding="same")
descent = convla.minimize_penalty(
    layer, alpha=1.0, iterations=150, tracker=Block(cluster_rtol=0.1), step=Backtracking(learning_rate=0.1)
)
print(descent)
print("before:", convla.condition_number(layer))
print("after: ", convla.condition_number(descent.operator))

# %%
ax = plot_spectrum(layer, label="before")
plot_spectrum(descent.operator, ax=ax, label="after")
ax.axhline(1, color="0.7", linewidth=1)
ax.legend()

# %%
before, after = convla.singular_values(layer).values, convla.singular_values(descent.operator).values
assert after[0] - after[-1] < 0.5 * (before[0] - before[-1])

# %% [markdown]
# What stops the descent, and how to go around it, is in
# [steering singular values](steering_singular_values.py); the theory in [the penalty](../penalty.md).
