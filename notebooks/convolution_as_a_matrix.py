# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # The convolution as a matrix
#
# A convolutional layer is a linear map, and a linear map has a matrix. Here we look at it: for each padding, for both
# orders of vec(), for several channels; and we transpose it, and solve with it, without writing it out.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse.linalg import lsqr, svds

from convla import (
    ConvGeometry,
    ConvOperator,
    convolution_matrix,
    cross_correlate,
    doubly_block_toeplitz,
    image_adjoint,
    kernel_adjoint,
    kernel_from_hwio,
    toeplitz_matrix,
    vec,
)
from convla.plotting import plot_spectrum, plot_symbol, show_matrix, slider

# %% [markdown]
# ## One dimension: a Toeplitz matrix
#
# Row r holds the kernel, shifted to position r. "full" has every row that touches the signal, "same" as many rows as
# the signal has samples, "valid" the rows where the kernel lies inside.

# %%
for padding in ("full", "same", "valid"):
    print(padding)
    print(toeplitz_matrix([1, 2, 3], 5, padding))

# %% [markdown]
# "valid" is a piece of "same", and "same" of "full": so their largest singular values are in that order.

# %%
kernel = np.random.default_rng(0).standard_normal(3)
largest = [np.linalg.norm(toeplitz_matrix(kernel, 20, padding), 2) for padding in ("valid", "same", "full")]
print(largest)
assert largest == sorted(largest)

# %% [markdown]
# ## Two dimensions: Toeplitz blocks in a Toeplitz pattern
#
# Each colour is one tap of the kernel.

# %%
taps = np.arange(1, 10).reshape(3, 3)
figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
for axis, padding in zip(axes, ("full", "same", "valid"), strict=True):
    axis.imshow(doubly_block_toeplitz(taps, (6, 6), padding), cmap="tab10", vmin=0, vmax=9, interpolation="nearest")
    axis.set_title(padding)
plt.show()

# %% [markdown]
# Move the slider: the middle of a blur grows until it is a sharpening. The matrix keeps its places, the symbol is lifted,
# and where it touches zero the layer cannot be inverted.


# %%
def draw(middle, figure):
    kernel = np.array([[0.0, 0.25, 0.0], [0.25, middle, 0.25], [0.0, 0.25, 0.0]])[None, None]
    layer = ConvOperator(kernel, (8, 8), padding="same")
    matrix, symbol, spectrum = figure.subplots(1, 3)
    show_matrix(layer, ax=matrix)
    plot_symbol(layer, points=33, ax=symbol)
    plot_spectrum(layer, ax=spectrum)
    spectrum.set(ylim=(0, 3))


slider(draw, np.linspace(-1, 2, 9).round(3), label="middle tap", size=(9, 2.8))

# %% [markdown]
# ## Which vec()?
#
# Stacking rows gives one matrix, stacking columns another. The blocks printed by Guo and Ye under their Eq. (2.1) are
# those of row stacking; under column stacking, which their text uses, they hold for the transposed kernel.

# %%
rows = doubly_block_toeplitz(taps, (4, 4), "same", order="C")
columns = doubly_block_toeplitz(taps, (4, 4), "same", order="F")
assert not np.array_equal(rows, columns)
assert np.array_equal(columns, doubly_block_toeplitz(taps.T, (4, 4), "same", order="C"))
print(np.linalg.svd(rows, compute_uv=False)[:4])
print(np.linalg.svd(columns, compute_uv=False)[:4])

# %% [markdown]
# ## Channels: a block for each pair
#
# A kernel in the (k, k, c_in, c_out) layout of that paper, two input channels and three output channels.

# %%
rng = np.random.default_rng(1)
layer = kernel_from_hwio(rng.integers(1, 9, (3, 3, 2, 3)))
geometry = ConvGeometry(layer.shape, (5, 5), padding="same")
sparse = convolution_matrix(layer, geometry, format="csr")
plt.figure(figsize=(4, 5))
plt.spy(sparse, markersize=2)
plt.show()

image = rng.integers(-5, 6, (2, 5, 5))
features = cross_correlate(image, layer, padding="same")
assert np.array_equal(sparse @ vec(image, 2), vec(features, 2))
print(sparse.shape, "of which", sparse.nnz, "entries are stored")

# %% [markdown]
# ## Where one weight stands
#
# The gradient formulas need, for each entry of the kernel, the set Omega of its places in M.

# %%
places = np.zeros(geometry.shape)
places[geometry.omega((0, 1, 0, 2))] = 1
plt.figure(figsize=(4, 5))
plt.spy(places, markersize=2)
plt.show()

# %% [markdown]
# ## Two adjoints
#
# The features are linear in the image and in the kernel. Both transposes, in exact integers:

# %%
weights = rng.integers(-5, 6, features.shape)
left = np.sum(features * weights)
assert left == np.sum(image * image_adjoint(weights, layer, image_shape=(5, 5), padding="same"))
assert left == np.sum(layer * kernel_adjoint(weights, image, kernel_size=(3, 3), padding="same"))
print(left)

# %% [markdown]
# ## Without the matrix
#
# On a 64 x 64 image with 16 channels M has four billion entries. `ConvOperator` only ever applies it, and SciPy's
# solvers take it as it is.

# %%
big = ConvOperator(rng.standard_normal((16, 16, 3, 3)) / 12, (64, 64))
print(big.shape)
print("largest singular value", svds(big.as_linear_operator(), k=1, return_singular_vectors=False, tol=1e-4, rng=0)[0])
blurred = big @ np.ones(big.shape[1])
(
    restored,
    *_,
) = lsqr(big.as_linear_operator(), blurred, iter_lim=50)
print("residual", np.linalg.norm(big @ restored - blurred) / np.linalg.norm(blurred))
