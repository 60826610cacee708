# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # What convolutional similarity minimises
#
# CSM proposes the loss $\mathrm{CS}(K_1, K_2) = \lVert K_1 \circledast K_2 \rVert^2$, because with full padding
# $\langle F_1, F_2 \rangle = \langle K_1 \circledast K_2, X \circledast X \rangle$: if the first factor vanishes, so does
# the inner product, whatever the input. Tables 3-6 report that minimising it makes the feature maps' similarity vanish.
# Here we look at what else vanishes.

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize

import convla
from convla.experiments.reproduction import Request, reproduce

rng = np.random.default_rng(0)


# %% [markdown]
# ## The only zeros are zero kernels
#
# $K_1 \circledast K_2$ lists the coefficients of the product of the polynomials $K_1(1/z)$ and $K_2(z)$, and a product of
# two non-zero polynomials is not zero. So $\mathrm{CS} = 0$ forces $K_1 = 0$ or $K_2 = 0$, and with unit norms there is a
# positive minimum $c_N$.


# %%
def cs(k1, k2):
    return float(convla.convolutional_similarity(np.stack([k1, k2])[:, None, :]))


def scale_invariant(flat):
    """CS / (|K1|^2 |K2|^2) with its gradient."""
    k1, k2 = flat.reshape(2, -1)
    n1, n2 = k1 @ k1, k2 @ k2
    value = cs(k1, k2) / (n1 * n2)
    gradient = convla.convolutional_similarity_gradient(flat.reshape(2, 1, -1)).reshape(2, -1) / (n1 * n2)
    return value, (gradient - 2 * value * np.stack([k1 / n1, k2 / n2])).ravel()


def minimum_over_unit_norms(n, starts=12):
    tight = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 400}
    runs = [
        minimize(scale_invariant, rng.normal(size=2 * n), jac=True, method="L-BFGS-B", options=tight)
        for _ in range(starts)
    ]
    return min(runs, key=lambda run: run.fun)


minima = {n: minimum_over_unit_norms(n) for n in range(1, 10)}
for n, run in minima.items():
    print(f"N = {n}: c_N <= {run.fun:.10f}")

# %% [markdown]
# $c_1 = 1$, $c_2 = 1/2$, $c_3 = 1/9$: these are the smallest values of many descents, so upper bounds of $c_N$. They
# fall quickly, since longer kernels can share less and less of the spectrum. The minimisers are a low-pass and a
# high-pass filter.

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
axes[0].semilogy(list(minima), [run.fun for run in minima.values()], "o-")
axes[0].set_title(r"smallest $\mathrm{CS}$ found over unit norms")
axes[0].set_xlabel("N")
k1, k2 = minima[9].x.reshape(2, -1)
axes[1].plot(k1 / np.linalg.norm(k1), "o-")
axes[1].plot(k2 / np.linalg.norm(k2), "s-")
axes[1].set_title("the pair found for N = 9")
frequencies = np.linspace(0, 0.5, 257)
for k in (k1, k2):
    axes[2].semilogy(frequencies, np.abs(np.fft.rfft(k / np.linalg.norm(k), 512)) ** 2 + 1e-12)
axes[2].set_title("their power spectra")
axes[2].set_xlabel("frequency")
plt.show()

# %% [markdown]
# In frequency the loss is the mean of the product of the two power spectra (Parseval), so it asks the kernels for
# disjoint spectra, or for length zero.

# %%
k1, k2 = rng.normal(size=(2, 7))
spectra = [np.abs(np.fft.fft(k, 13)) ** 2 for k in (k1, k2)]
print("CS =", cs(k1, k2), "  mean product of the power spectra =", np.mean(spectra[0] * spectra[1]))

# %% [markdown]
# ## Tables 3-6, and three controls
#
# `convla reproduce controls` runs each published setting as it is, with plain shrinkage
# $\lVert K_1 \rVert^2 + \lVert K_2 \rVert^2$ in place of the loss, and with the scale-invariant
# $\mathrm{CS} / (\lVert K_1 \rVert^2 \lVert K_2 \rVert^2)$, on the same draws.

# %%
with tempfile.TemporaryDirectory() as folder:
    run = reproduce(Request(targets=("controls",), repetitions=500, output=folder))

print("tables  N  optimizer  minimised          B %     C %   shorter, longer keeps   |cos| before, after")
for setting, summary in sorted(run.found.items(), key=lambda item: (item[0].n, item[0].optimizer)):
    if setting.tables != (3, 4):
        continue
    outcome = summary.kept
    kept = outcome.converged
    start, end = outcome.similarity[kept].T
    down = end < start
    shorter, longer = np.median(outcome.survival, axis=0)
    name = {"loss": "convolutional"}.get(setting.control, setting.control)
    print(
        f"3-4   {setting.n:3d}  {setting.optimizer:9s}  {name:16s} {100 * down.mean():6.1f}  "
        f"{100 * np.mean(1 - end[down] / start[down]):6.2f}   {shorter:12.1e}, {longer:7.1e}   "
        f"{np.nanmean(outcome.cosine[kept, 0]):.3f}, {np.nanmean(outcome.cosine[kept, 1]):.3f}"
    )

# %% [markdown]
# Columns B and C of the published tables are met by shrinkage, which leaves the feature maps' angle as it was.
# Convolutional similarity shrinks (one kernel more than the other) *and* turns. The scale-invariant form turns and does
# not shrink; with Adam the kernels grow, so the inner product decreases less often, while the feature maps end nearer to
# orthogonal.

# %%
for conclusion in run.conclusions:
    print(f"{conclusion.verdict}: {conclusion.statement}\n    {conclusion.evidence}\n")
