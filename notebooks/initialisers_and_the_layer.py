# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Initialisers, and what they do to the layer
#
# Orthogonal initialisation makes the *filters* orthonormal: the rows of the matrix of c_out filters times c_in taps
# (OIC). It is said to preserve norms. The matrix does; does the layer?

# %%
import matplotlib.pyplot as plt
import numpy as np

import convla

shape, image = (12, 12, 3, 3), (10, 10)


def spectrum(kernel):
    """Return the singular values of the zero-padded layer."""
    return np.linalg.svd(convla.ConvOperator(kernel, image).to_dense(), compute_uv=False)


# %% [markdown]
# ## Three kernels, three layers
#
# A Gaussian kernel scaled to the same norm, an orthogonal one, and a delta-orthogonal one, whose only tap is an
# orthogonal matrix of channels.

# %%
gaussian = np.random.default_rng(0).standard_normal(shape) / np.sqrt(12 * 9)
kernels = {
    "Gaussian": gaussian,
    "orthogonal": convla.orthogonal_kernel(shape, rng=0),
    "delta-orthogonal": convla.delta_orthogonal_kernel(shape, rng=0),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for name, kernel in kernels.items():
    axes[0].plot(np.linalg.svd(kernel.reshape(12, -1), compute_uv=False), label=name)
    axes[1].plot(spectrum(kernel), label=name)
    print(f"{name:17s} layer: largest singular value {spectrum(kernel)[0]:.3f}, least {spectrum(kernel)[-1]:.1e}")
axes[0].set_title("matrix of filters")
axes[1].set_title("layer, zero padding")
axes[1].axhline(3, color="gray", linestyle=":")
for axis in axes:
    axis.set_xlabel("index")
axes[0].legend()
plt.show()

# %% [markdown]
# On the left, orthogonal initialisation is flat at 1. On the right, it hardly differs from the Gaussian: only the
# delta-orthogonal layer is an isometry. The dotted line is the sharp bound for orthonormal filters and stride 1,
# $\sigma_{\max} \le \sqrt{\text{taps}} = 3$. A single filter of nine equal taps attains it:

# %%
flat = np.full((1, 1, 3, 3), 1 / 3)
layer = convla.ConvOperator(flat, image, boundary="circular").to_dense()
print(f"one flat filter: norm of the filter {np.linalg.norm(flat):.3f}, of the layer {np.linalg.norm(layer, 2):.3f}")

# %% [markdown]
# ## How large does the layer's norm get at random?

# %%
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for k in (1, 3, 5):
    norms = []
    for seed in range(12):
        kernel = convla.orthogonal_kernel((8, 8, k, k), rng=seed)
        norms.append(np.linalg.norm(convla.ConvOperator(kernel, (8, 8)).to_dense(), 2))
    axis.plot([k] * len(norms), norms, "o", alpha=0.5)
    print(f"{k} x {k}: largest singular value {np.mean(norms):.2f} +- {np.std(norms):.2f}, bound {k}")
axis.plot([1, 3, 5], [1, 3, 5], "k:", label="bound")
axis.set_xlabel("side of the kernel")
axis.set_ylabel("largest singular value of the layer")
axis.legend()
plt.show()

# %% [markdown]
# Only 1 x 1 kernels keep the promise. Random 3 x 3 and 5 x 5 layers with orthonormal filters all have a norm near 2.
#
# ## Twenty linear layers deep
#
# What becomes of an image's norm, and of the angle between two images, when layers without nonlinearity follow each
# other?

# %%
rng = np.random.default_rng(1)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
makers = {
    "Gaussian": lambda seed: np.random.default_rng(seed).standard_normal(shape) / np.sqrt(12 * 9),
    "orthogonal": lambda seed: convla.orthogonal_kernel(shape, rng=seed),
    "delta-orthogonal": lambda seed: convla.delta_orthogonal_kernel(shape, rng=seed),
}
start = rng.standard_normal((2, 12, *image))
for name, make in makers.items():
    pair, norms, cosines = start, [], []
    for depth in range(20):
        norms.append(np.linalg.norm(pair[0]) / np.linalg.norm(start[0]))
        cosines.append(np.vdot(pair[0], pair[1]) / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1]))
        pair = convla.cross_correlate(pair, make(depth), padding="same")
    axes[0].semilogy(norms, label=name)
    axes[1].plot(np.abs(cosines), label=name)
axes[0].set_title("norm / norm at the start")
axes[1].set_title("|cosine| of two images")
for axis in axes:
    axis.set_xlabel("depth")
axes[0].legend()
plt.show()

# %% [markdown]
# Orthonormal filters lose half of the norm in twenty layers, a little less than Gaussian ones, and the angle drifts. The
# delta-orthogonal network keeps norm and angle to rounding from end to end.
#
# ## Which orthogonal matrix?
#
# The recipe of the source takes singular vectors of a Gaussian matrix, whose signs LAPACK chooses. The default draws
# uniformly (the Haar measure). One filter shows the difference: is the sign of each of its taps a fair coin?

# %%
for method in ("haar", "svd"):
    draws = np.stack([convla.orthogonal_kernel((1, 3), method=method, rng=seed) for seed in range(2000)])
    print(f"{method}: share of positive taps {np.round((draws > 0).mean(axis=0)[0], 2)}")
