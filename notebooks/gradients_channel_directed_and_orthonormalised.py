# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Gradients: channel-directed and orthonormalised
#
# "The" gradient of a loss depends on how lengths of steps are measured. CDG measures them so that steps common to all
# output channels are cheap; OGN replaces a layer's gradient by its nearest orthonormal matrix. Both are linear algebra
# on one array, with the loss left alone.

# %%
from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np

import convla

rng = np.random.default_rng(0)

# %% [markdown]
# ## What the metrics do to one bump
#
# A gradient that is 1 at one output channel of 32 and 0 elsewhere. The re-weighted gradient spreads a constant, the
# Sobolev gradient a parabola (it is the Green's function of Eq. (9)), Laplacian smoothing a pair of exponentials.

# %%
bump = np.zeros(32)
bump[10] = 1.0
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
axis.plot(convla.reweighted_gradient(bump, 8.0), label=r"re-weighted, $\lambda = 8$")
for lam in (0.02, 0.1, 1.0):
    axis.plot(convla.sobolev_gradient(bump, lam), label=rf"Sobolev, $\lambda = {lam}$")
axis.plot(convla.laplacian_smoothing(bump, 10.0), "--", label=r"Laplacian smoothing, $\sigma = 10$")
axis.set_xlabel("output channel")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## How far is the printed Riemann sum from the exact solution?
#
# By a constant along the axis: the mean of the gradient over $12 \lambda O^2$. Fractions show it exactly.

# %%
for channels in (4, 16, 64):
    f = np.array([Fraction(int(x)) for x in rng.integers(-9, 10, channels)])
    exact = convla.sobolev_gradient(f, 1)
    riemann = convla.sobolev_gradient(f, 1, discretization="riemann")
    difference = set(riemann - exact)
    print(f"O = {channels:2d}: the difference takes the values {difference}, mean / (12 O^2) =", end=" ")
    print(sum(f) / channels / (12 * channels**2))

# %% [markdown]
# With $\lambda = 1$ and 64 channels the two differ by a fifty-thousandth of the mean; it makes no difference to training.
#
# ## Order matters to one of them
#
# The channels of a layer have no order. The re-weighted gradient does not need one; the Sobolev gradient makes one.

# %%
gradient = rng.standard_normal((32, 16, 3, 3))
shuffle = rng.permutation(32)
for name, transform in (
    ("re-weighted", lambda g: convla.reweighted_gradient(g, 2.0)),
    ("Sobolev", lambda g: convla.sobolev_gradient(g, 1.0)),
):
    before, after = transform(gradient)[shuffle], transform(gradient[shuffle])
    change = np.linalg.norm(after - before) / np.linalg.norm(before)
    print(f"{name:12s}: shuffling the channels first changes the result by {change:.1e}")

# %% [markdown]
# ## A descent where it helps
#
# Least squares for a layer whose true filters share a common part, seen through noise. A few plain steps fit the noise
# as fast as the common part; the channel-directed metrics take the common part first.

# %%
truth = rng.standard_normal((1, 16, 3, 3)) + 0.3 * rng.standard_normal((32, 16, 3, 3))
noisy = truth + 1.5 * rng.standard_normal(truth.shape)
transforms = {
    "plain": lambda g: g,
    "re-weighted, lambda = 10": lambda g: convla.reweighted_gradient(g, 10.0),
    "Sobolev, lambda = 1": lambda g: convla.sobolev_gradient(g, 1.0),
}
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for name, transform in transforms.items():
    weights, errors = np.zeros_like(truth), []
    for _ in range(60):
        errors.append(np.linalg.norm(weights - truth) / np.linalg.norm(truth))
        weights = weights - 0.1 * transform(weights - noisy)
    axis.plot(errors, label=name)
axis.set_xlabel("step")
axis.set_ylabel("relative distance to the truth")
axis.legend()
plt.show()

# %% [markdown]
# The construction is in their favour: the truth has the structure that the metrics assume. Where the filters share
# nothing, the same metrics only slow the descent down.
#
# ## Orthonormalised gradients
#
# The gradient's matrix of filters times taps is replaced by $U V^\top$: all its directions get the same length. Real
# gradients are ill-conditioned; what do the methods make of their singular values?

# %%
u, _, vt = np.linalg.svd(rng.standard_normal((64, 576)), full_matrices=False)
values = np.logspace(0, -5, 64)
gradient = ((u * values) @ vt).reshape(64, 64, 3, 3)
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for method in ("exact", "newton-schulz", "polar-express"):
    result = convla.orthonormalize(gradient, method=method).reshape(64, -1)
    axis.semilogx(values, np.diagonal(u.T @ result @ vt.T), ".-", label=method)
    distance = np.linalg.norm(result - u @ vt) / np.linalg.norm(u @ vt)
    print(f"{method:14s} relative distance to U V^T: {distance:.1e}")
axis.set_xlabel("singular value of the gradient")
axis.set_ylabel("of the result")
axis.legend()
plt.show()

# %% [markdown]
# Newton-Schulz with Muon's coefficients trades accuracy for speed, by design: values wander about 1, and what is small
# stays small. For rank-deficient gradients there is a choice to make. The rows of a softmax layer's gradient sum to zero,
# so one of its ten directions is pure rounding.

# %%
softmax = rng.standard_normal((10, 128))
softmax -= softmax.mean(axis=0)
for choice in ("partial", "complete"):
    result = convla.orthonormalize(softmax, rank_deficient=choice)
    print(f"{choice:9s}: the sum of the rows has norm {np.linalg.norm(result.sum(axis=0)):.3f}")

# %% [markdown]
# The completion steps by a full unit in a direction in which the gradient is zero. The default does not.
#
# ## The layer's operator is not its matrix of filters
#
# Orthonormal filters do not make the layer's linear map orthonormal. `orthonormalize_operator` works on that map, one
# frequency at a time, and projects back to the kernel's support.

# %%
gradient = rng.standard_normal((8, 8, 3, 3))
image = (12, 12)
filters = convla.orthonormalize(gradient)
operator = convla.orthonormalize_operator(gradient, image)
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for name, kernel in (("gradient, scaled", gradient), ("filters", filters), ("operator, projected", operator)):
    layer = convla.ConvOperator(kernel, image, boundary="circular").to_dense()
    spectrum = np.linalg.svd(layer, compute_uv=False)
    spectrum /= spectrum.mean()
    axis.plot(spectrum, label=f"{name}: largest / mean {spectrum[0]:.2f}")
axis.set_xlabel("index")
axis.set_ylabel("singular value of the layer / mean")
axis.legend()
plt.show()
cosine = np.sum(filters * operator) / np.linalg.norm(filters) / np.linalg.norm(operator)
print(f"cosine between the two updates: {cosine:.3f}")
