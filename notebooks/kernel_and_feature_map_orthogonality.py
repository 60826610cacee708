# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Orthogonal kernels, orthogonal feature maps?
#
# Two kernels are orthogonal when $\langle K_1, K_2 \rangle = 0$. Does that make their feature maps
# $F_i = X \circledast K_i$ orthogonal, or at least less similar? This is the question behind Tables 1 and 2 of CSM
# (*Kernel Orthogonality does not necessarily imply a Decrease in Feature Map Redundancy in CNNs*).

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np

import convla
from convla.experiments.csm.settings import Readings, table_settings
from convla.experiments.descents.outcome import run_setting
from convla.experiments.reproduction import Request, reproduce

rng = np.random.default_rng(0)

# %% [markdown]
# ## A counterexample by hand
#
# The sum and the difference of neighbours are orthogonal kernels. Their feature maps are not orthogonal.

# %%
k1, k2, x = np.array([1, 1]), np.array([1, -1]), np.array([1, 2, 4])
f1 = convla.cross_correlate(x[None], k1[None, None], padding="valid")
f2 = convla.cross_correlate(x[None], k2[None, None], padding="valid")
print("F1 =", f1.ravel(), " F2 =", f2.ravel())
print("<K1, K2> =", convla.kernel_similarity(k1, k2))
print("<F1, F2> =", convla.feature_map_similarity(k1, k2, x, padding="valid"))

# %% [markdown]
# ## The matrix between the two
#
# The feature maps enter only through a matrix $T$ fixed by the input: $\langle F_1, F_2 \rangle = K_1^\top T K_2$.
# Orthogonal kernels give orthogonal feature maps for every pair only if $T$ is a multiple of the identity, that is, if
# the input is white. An input drawn from $U(0, 1)$ has a mean, and is far from it.

# %%
n, m = 9, 64
inputs = {
    "uniform on (0, 1)": rng.uniform(0, 1, m),
    "white noise, mean 0": rng.normal(size=m),
}
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for axis, (name, x) in zip(axes, inputs.items(), strict=True):
    T = convla.feature_map_gram(x[None], (n,), padding="full")
    picture = axis.imshow(T / T[0, 0], vmin=-1, vmax=1, cmap="RdBu_r")
    axis.set_title(f"T / T[0, 0], X {name}")
figure.colorbar(picture, ax=axes, shrink=0.8)
plt.show()

# %% [markdown]
# The same in numbers: the cosine of the feature maps of exactly orthogonal kernels.


# %%
def cosine_of_feature_maps(k1, k2, T):
    return k1 @ T @ k2 / np.sqrt((k1 @ T @ k1) * (k2 @ T @ k2))


for name, x in inputs.items():
    T = convla.feature_map_gram(x[None], (n,), padding="full")
    cosines = []
    for _ in range(2000):
        a, b = rng.uniform(-1, 1, (2, n))
        b = b - (a @ b) / (a @ a) * a
        cosines.append(abs(cosine_of_feature_maps(a, b, T)))
    print(f"X {name:20s}: mean |cos(F1, F2)| over random orthogonal kernels {np.mean(cosines):.3f}")

# %% [markdown]
# ## Making them orthogonal by descent
#
# The toy experiment descends on $\langle K_1, K_2 \rangle^2$ and watches $\langle F_1, F_2 \rangle^2$. One repetition can
# go either way: here are two draws, the kernels becoming orthogonal in both.


# %%
def descend(k1, k2, x, steps=250, rate=0.1):
    trace = []
    for _ in range(steps):
        product = convla.kernel_similarity(k1, k2)
        trace.append((product**2, convla.feature_map_similarity(k1, k2, x, padding="full") ** 2))
        g1, g2 = convla.kernel_similarity_gradient(k1, k2)
        k1, k2 = k1 - rate * 2 * product * g1, k2 - rate * 2 * product * g2
    return np.array(trace)


figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
wanted = {"decreases": -1, "increases": 1}
for axis, (name, sign) in zip(axes, wanted.items(), strict=True):
    while True:
        x = rng.uniform(0, 1, m)
        trace = descend(*rng.uniform(-1, 1, (2, 3)), x)
        if np.sign(trace[-1, 1] - trace[0, 1]) == sign and trace[0, 0] > 0.05:
            break
    axis.semilogy(trace[:, 0] + 1e-20, label=r"$\langle K_1, K_2 \rangle^2$")
    axis.semilogy(trace[:, 1] + 1e-20, label=r"$\langle F_1, F_2 \rangle^2$")
    axis.set_title(f"the similarity of the feature maps {name}")
    axis.set_xlabel("iteration")
    axis.set_ylim(1e-20, 1e4)
axes[0].legend()
plt.show()

# %% [markdown]
# ## A thousand repetitions of each setting
#
# `convla.experiments` holds the published settings. This is `convla reproduce table1 table2`, from Python.

# %%
with tempfile.TemporaryDirectory() as folder:
    run = reproduce(Request(targets=("table1", "table2"), output=folder))

for verdict in run.reports[0].cells[2]:
    if verdict.cell.quantity == "B_reduction_frequency_pct":
        cell, ours = verdict.cell, verdict.ours
        print(
            f"N = {cell.n:2d} {cell.optimizer:4s}: decreased in {ours.value:5.1f} +- {ours.stderr:.1f} %, "
            f"printed {cell.value:5.1f} %, {verdict.verdict}"
        )

# %% [markdown]
# In every row a good part of the repetitions ends with *more* similar feature maps, as the source says. How far apart do
# orthogonal kernels turn the feature maps, when lengths do not count?

# %%
for setting, summary in run.found.items():
    before, after = np.nanmean(summary.kept.cosine, axis=0)
    print(f"{setting.name:18s} mean |cos(F1, F2)|: {before:.3f} at the start, {after:.3f} with orthogonal kernels")

# %% [markdown]
# Hardly. The second notebook asks what convolutional similarity does about it.
#
# ## Why column D cannot be reproduced
#
# Column D averages the relative increase $(s_1 - s_0) / s_0$ of $s = \langle F_1, F_2 \rangle^2$. The inner product at the
# start has a positive density at 0, so $P(s_0 < \epsilon)$ falls like $\sqrt{\epsilon}$ and the ratio has a tail of index
# 1/2: its expectation is infinite, and the sample mean grows with the sample. Hill's estimate of the index, from the
# largest 5 %, agrees; the median is stable.

# %%
row = table_settings(["table2"])[0]
print(f"{row.name}: printed mean of D 14120 %")
for repetitions in (1_000, 10_000, 100_000):
    for seed in (0, 1):
        start, end = run_setting(row.descent(Readings()), repetitions=repetitions, seed=seed).similarity.T
        ratio = np.sort(end[end > start] / start[end > start])
        tail = ratio[-len(ratio) // 20 :]
        print(
            f"{repetitions:7,} repetitions: mean {100 * np.mean(ratio - 1):13,.0f} %, "
            f"median {100 * np.median(ratio - 1):4.0f} %, tail index {1 / np.mean(np.log(tail[1:] / tail[0])):.2f}"
        )
