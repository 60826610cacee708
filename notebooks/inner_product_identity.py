# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Feature maps, kernels and the inner-product identity
#
# Two kernels $K_1, K_2$ of $N$ taps turn an input $X$ into two feature maps. How similar those are is a question about the
# input as much as about the kernels. CSM Eq. (6) separates the two: with full padding
#
# $$\langle F_1, F_2\rangle = \langle K_1 \circledast K_2,\; (X \circledast X)_{[1-N,\,N-1]}\rangle ,$$
#
# a cross-correlation of the kernels, against the autocorrelation of the input at the $2N-1$ lags that a kernel can see.

# %%
import matplotlib.pyplot as plt
import numpy as np

import convla
from convla import identities

rng = np.random.default_rng(0)

# %% [markdown]
# ## In integers, exactly
#
# Both sides are polynomials, so integers stay integers.

# %%
k1, k2, x = [1, 2, -1], [3, 0, 1], [1, 2, 4, -3, 5]
print("K1 (x) K2     ", identities.kernel_correlation(k1, k2))
print("X (x) X       ", identities.autocorrelation(x, (2,)))
print("feature maps  ", identities.feature_inner_product(k1, k2, x))
print("lags          ", identities.correlation_inner_product(k1, k2, x))

# %% [markdown]
# ## Why a finite check is a proof
#
# The identity is linear in each kernel and quadratic in $X$. So it holds for *all* real inputs of a size as soon as it holds
# for unit kernels and for inputs $e_i$ and $e_i + e_j$. Here are all of them for $N = 3$, $M = 8$.

# %%
n, m = 3, 8
kernels = np.eye(n, dtype=int)[:, None, :]
pairs = [np.eye(m, dtype=int)[i] | np.eye(m, dtype=int)[j] for i in range(m) for j in range(i, m)]
inputs = np.array(pairs)[:, None, :]
left = identities.feature_inner_product(kernels, kernels, inputs, stacks=True)
right = identities.correlation_inner_product(kernels, kernels, inputs, stacks=True)
print(left.size, "integer equalities:", (left == right).all())

# %% [markdown]
# `convla verify CSM-6` does so for every size up to a bound, and for the sizes of the published tables; in two and three
# dimensions, and with channels, where every pair of channels takes part.
#
# ## What orthogonal kernels leave
#
# Lag 0 contributes $\|X\|^2 \langle K_1, K_2\rangle$. If the kernels are orthogonal, all other lags remain. For a smooth input
# these are as large as lag 0, so orthogonality buys little; for white noise it buys a lot.

# %%
smooth = np.convolve(rng.standard_normal(300), np.ones(12), mode="valid")
noise = rng.standard_normal(smooth.size)
lags = np.arange(-8, 9)
figure, axis = plt.subplots(figsize=(6, 3))
for name, signal in (("smooth", smooth), ("white noise", noise)):
    values = identities.autocorrelation(signal, (8,))
    axis.plot(lags, values / values.max(), "o-", label=name)
axis.set(xlabel="lag", ylabel="autocorrelation, relative")
axis.legend()
plt.show()

# %%
remaining = {"smooth": [], "white noise": []}
for _ in range(300):
    a, b = rng.uniform(-1, 1, (2, 9))
    b -= a * (a @ b) / (a @ a)
    for name, signal in (("smooth", smooth), ("white noise", noise)):
        f1, f2 = (convla.cross_correlate(signal[None], k[None, None], padding="full") for k in (a, b))
        remaining[name].append(abs(np.sum(f1 * f2)) / np.linalg.norm(f1) / np.linalg.norm(f2))
for name, cosines in remaining.items():
    print(f"{name:12} mean |cos| of the feature maps of orthogonal kernels: {np.mean(cosines):.2f}")

# %% [markdown]
# ## A bound that no input breaks
#
# By Cauchy and Schwarz $|\langle F_1, F_2\rangle|^2 \le CS(K_1, K_2)\,\|(X \circledast X)_{[1-N,\,N-1]}\|^2$: a small
# convolutional similarity makes feature maps nearly orthogonal for every input at once. That is its use.

# %%
ratios = []
for _ in range(2000):
    a, b, signal = rng.uniform(-1, 1, 9), rng.uniform(-1, 1, 9), rng.uniform(0, 1, 64)
    bound = np.sqrt(np.sum(identities.kernel_correlation(a, b) ** 2) * identities.input_energy(signal, (8,)))
    ratios.append(abs(identities.feature_inner_product(a, b, signal)) / bound)
figure, axis = plt.subplots(figsize=(6, 3))
axis.hist(ratios, bins=40)
axis.set(xlabel="inner product over its bound", ylabel="draws")
plt.show()
assert max(ratios) <= 1

# %% [markdown]
# ## But it cannot vanish
#
# $K_1 \circledast K_2$ is a product of polynomials: zero only if a kernel is zero. For kernels of unit norm the least value
# falls about tenfold with every tap, between Bombieri's bound and the best pair that a search finds.

# %%
taps = range(1, 13)
found = [
    np.sum(identities.kernel_correlation(*identities.least_similar_pair(n, starts=8, sweeps=60)) ** 2) for n in taps
]
figure, axis = plt.subplots(figsize=(6, 3))
axis.semilogy(taps, found, "o-", label="best pair found")
axis.semilogy(taps, [identities.similarity_lower_bound(n) for n in taps], "s--", label="lower bound")
axis.set(xlabel="taps N", ylabel="convolutional similarity")
axis.legend()
plt.show()
