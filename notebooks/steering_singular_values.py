# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Steering singular values, and the barrier
#
# A layer that changes lengths little has singular values near 1. Guo and Ye steer them there by gradient descent on
# $\mathcal R_\alpha(K) = \sigma_{\max}(M^T M - \alpha I)$. We run their algorithm, watch what it reports and what is
# true, meet a barrier, and go around it.

# %%
import matplotlib.pyplot as plt
import numpy as np

import convla
from convla.plotting import slider

rng = np.random.default_rng(0)
image = (15, 15)


def spectrum(kernel):
    """All singular values, largest first."""
    return np.linalg.svd(convla.ConvOperator(kernel, image).to_dense(), compute_uv=False)


# %% [markdown]
# ## One end or the other
#
# $M^T M - \alpha I$ is symmetric: its norm is $\max(\sigma_{\max}^2 - \alpha,\ \alpha - \sigma_{\min}^2)$.

# %%
tall = rng.random((3, 1, 3, 3))  # one input channel, three output channels
operator = convla.ConvOperator(tall, image)
values = spectrum(tall)
for alpha in (1.0, 40.0):
    ends = values[0] ** 2 - alpha, alpha - values[-1] ** 2
    print(f"alpha = {alpha:4}: {float(convla.penalty(operator, alpha)):.6f} = max of {ends[0]:.6f} and {ends[1]:.6f}")

# %% [markdown]
# Its gradient needs one singular vector, one application of the operator and one kernel adjoint. Finite differences
# agree:

# %%
gradient = convla.penalty_gradient(operator, 1.0)
direction = rng.standard_normal(tall.shape)
h = 1e-6
ahead, behind = (float(convla.penalty(operator.with_kernel(tall + s * h * direction), 1.0)) for s in (1, -1))
print((ahead - behind) / (2 * h), np.sum(gradient * direction))

# %% [markdown]
# ## Algorithm 2.1
#
# A fixed step of 0.01, and two singular triplets carried along by two power iterations a step.

# %%
descent = convla.minimize_penalty(convla.ConvOperator(tall, image), iterations=40)
print(descent.message)
for name, kernel in (("before", tall), ("after", descent.kernel)):
    values = spectrum(kernel)
    print(f"{name}: sigma from {values[-1]:.3f} to {values[0]:.3f}, condition number {values[0] / values[-1]:.2f}")

# %% [markdown]
# ## The dip that is not there
#
# With three input channels and one output channel and $\alpha = 10$, the paper sees the value dip below $\alpha$ at the
# 4th iteration and come back. We record what the algorithm reports, and the truth from all singular values.

# %%
wide = rng.random((1, 3, 3, 3))
trace = convla.minimize_penalty(convla.ConvOperator(wide, image), 10.0, iterations=12).trace
figure, axis = plt.subplots(figsize=(7, 3.5))
axis.plot(trace.true, color="#c8442e", label="true")
axis.plot(trace.reported, color="#333333", linestyle=(0, (1.5, 1.2)), label="reported")
axis.axhline(10.0, color="#c8442e", linewidth=0.6)
axis.set(xlabel="iteration", ylabel=r"$\sigma_{\max}(M^T M - 10 I)$")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# The carried vectors have fallen to $\sigma^2 \approx \alpha$, and know nothing yet of the null space of $M$, where the
# maximum now is. Two power iterations lag behind.
#
# ## The barrier
#
# $M$ is $225 \times 675$, so $M^T M$ has 450 zero eigenvalues at least, and $M^T M - \alpha I$ the eigenvalue $-\alpha$:
# the penalty cannot go below $\alpha$. Once $\sigma_{\max}^2 < 2 \alpha$ it *is* $\alpha$, and its gradient is zero.

# %%
quiet = 0.02 * rng.standard_normal(wide.shape)
operator = convla.ConvOperator(quiet, image)
print("penalty", float(convla.penalty(operator, 1.0)), " largest gradient entry",
      float(np.abs(convla.penalty_gradient(operator, 1.0)).max()))  # fmt: skip

# %% [markdown]
# $M M^T$ has no such null space. With `gram="smaller"` the penalty is taken of it, and sees $\sigma_{\min}$. Here both ends
# of the spectrum are tracked, the gradient is averaged over what is active, and the step is halved until it helps.

# %%
settling = {"tracker": convla.penalties.Block(cluster_rtol=0.01), "step": "backtracking"}
layer = convla.ConvOperator(wide, image)
traces = {
    "$M^T M$": convla.minimize_penalty(layer, iterations=30, **settling).trace,
    "$M M^T$": convla.minimize_penalty(layer, iterations=30, gram="smaller", **settling).trace,
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for label, trace in traces.items():
    axes[0].plot(trace.sigma_min, label=label)
    axes[1].plot(trace.condition, label=label)
    print(
        f"{label}: penalty {trace.true[-1]:.3f}, sigma_min {trace.sigma_min[-1]:.3f}, kappa {trace.condition[-1]:.2f}"
    )
axes[0].set(title=r"$\sigma_{\min}(M)$", xlabel="iteration", ylim=(0, None))
axes[1].set(title=r"$\kappa(M)$", xlabel="iteration", ylim=(0, None))
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# Step by step, under a slider: every singular value of both descents. That of $M^T M$ ends as soon as the largest is below
# $\sqrt 2$ (dotted), wherever the others are; that of $M M^T$ goes on, and draws them together around 1.


# %%
def follow(gram):
    """The kernel at the start and after every step."""
    kernels = [wide]
    convla.minimize_penalty(
        layer, iterations=30, gram=gram, callback=lambda descent: kernels.append(descent.kernel.copy()), **settling
    )
    return [spectrum(kernel) for kernel in kernels]


paths = {"$M^T M$": follow("input"), "$M M^T$": follow("smaller")}


def draw(step, figure):
    axis = figure.subplots()
    for label, path in paths.items():
        axis.semilogy(path[min(step, len(path) - 1)], label=label)
    axis.axhline(1.0, color="0.7", linewidth=0.8)
    axis.axhline(np.sqrt(2.0), color="0.7", linewidth=0.8, linestyle="dotted")
    axis.set(xlabel="index", ylabel="singular value", ylim=(0.1, 10))
    axis.legend(frameon=False, loc="upper right")


slider(draw, range(max(map(len, paths.values()))), label="step")

# %% [markdown]
# ## At the end both ends balance
#
# Scaling the kernel moves all singular values together. So at a minimum neither end can be the only one to attain the
# maximum: $\sigma_{\max}^2 - \alpha = \alpha - \sigma_{\min}^2$. The power method on $M^T M - \alpha I$ then has two
# eigenvalues of equal modulus and opposite sign, and no limit: this is why both ends are tracked separately.

# %%
end = traces["$M M^T$"]
print("upper end", end.sigma_max[-1] ** 2 - 1.0, " lower end", 1.0 - end.sigma_min[-1] ** 2)
