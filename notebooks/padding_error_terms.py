# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Padding: the error terms A and B
#
# The inner-product identity is exact for full padding. Most networks pad less. CSM Eq. (33) says what changes: with padding
# $P \le N - 1$,
#
# $$\langle F_1, F_2\rangle_P = \langle K_1 \circledast K_2,\; (X \circledast X)_{[1-N,\,N-1]}\rangle - A - B ,$$
#
# where $A$ and $B$ collect the outputs that the smaller padding leaves out at either end. (The source prints
# $X[i + n_2 - n_2]$ in them; it must read $X[i + n_2 - n_1]$.)

# %%
import matplotlib.pyplot as plt
import numpy as np

from convla import identities

rng = np.random.default_rng(0)

# %%
k1, k2, x = [1, 2, -1], [3, 0, 1], [1, 2, 4, -3, 5]
full = identities.correlation_inner_product(k1, k2, x)
for padding in (0, 1, 2):
    a, b = identities.padding_error_terms(k1, k2, x, padding)
    padded = identities.feature_inner_product(k1, k2, x, padding=padding)
    print(f"P = {padding}: {full} - ({a}) - ({b}) = {full - a - b}; from the feature maps: {padded}")

# %% [markdown]
# ## Two dimensions, unequal padding
#
# Outputs left out form a frame. $A$ takes those below the kept range along the first axis on which they lie outside, $B$ those
# above it.

# %%
k1, k2, x = (rng.integers(-3, 4, size) for size in ((3, 3), (3, 3), (5, 6)))
padding = [(1, 0), (2, 1)]
a, b = identities.padding_error_terms(k1, k2, x, padding)
print(identities.correlation_inner_product(k1, k2, x) - a - b)
print(identities.feature_inner_product(k1, k2, x, padding=padding))

# %% [markdown]
# ## How large are they?
#
# The source counts terms, $N^2 (N - P - 1)$ against $N^2 (M + N - 1)$, and concludes that $A + B$ is much smaller than the whole
# with high probability. But terms of both signs cancel in the whole. Measured, with the source's sampling, $M = 64$:


# %%
def ratio(n: int, padding: int, draw) -> float:
    k1, k2 = rng.uniform(-1, 1, (2, n))
    signal = draw(64)
    a, b = identities.padding_error_terms(k1, k2, signal, padding)
    return abs(a + b) / abs(identities.correlation_inner_product(k1, k2, signal))


inputs = {"uniform on (0, 1)": lambda m: rng.uniform(0, 1, m), "zero-mean noise": rng.standard_normal}
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for axis, (name, draw) in zip(axes, inputs.items(), strict=True):
    for n in (3, 9, 16):
        ratios = np.sort([ratio(n, 0, draw) for _ in range(400)])
        axis.semilogx(ratios, 1 - np.arange(ratios.size) / ratios.size, label=f"N = {n}")
    axis.axvline(1, color="grey", linewidth=0.5)
    axis.set(xlabel="|A + B| over the whole, P = 0", title=name, xlim=(1e-3, 30))
axes[0].set(ylabel="share of draws above")
axes[0].legend()
plt.show()

# %% [markdown]
# For $N = 16$ the error terms exceed a tenth of the whole in most draws, and in a few per cent they exceed it altogether. More
# padding helps:

# %%
paddings = range(16)
medians = [np.median([ratio(16, p, inputs["uniform on (0, 1)"]) for _ in range(100)]) for p in paddings]
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(paddings, medians, "o-")
axis.set(xlabel="padding P (N = 16, M = 64)", ylabel="median ratio")
plt.show()
assert medians[-1] == 0

# %% [markdown]
# At $P = N - 1$ nothing is left out. `convla verify CSM-34` measures the same for rows of photographs, and gives the smallest
# integers for which $A + B$ is all there is.
