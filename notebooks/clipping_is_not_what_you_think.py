# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Clipping is not what you think
#
# To bound the norm of a convolutional layer, people clip its singular values: transform the kernel, clip the singular
# values at every frequency, transform back. That is exact, for a circular layer, and for kernels as large as the image.
# A layer has zeros around its image, and a small kernel. So what comes back is cropped to the size that it had.
#
# We look at what the crop does to the norm, and at the nearest kernel that obeys the limit after all.

# %%
import matplotlib.pyplot as plt
import numpy as np

import convla

rng = np.random.default_rng(0)
n = 12


def clip_and_crop(kernel, maximum):
    """Clip the singular values of the circular layer, and crop the kernels to the size that they had."""
    symbol = np.moveaxis(np.fft.fft2(kernel, (n, n)), (0, 1), (-2, -1))
    left, values, right = np.linalg.svd(symbol, full_matrices=False)
    clipped = left @ (np.minimum(values, maximum)[..., None] * right)
    back = np.fft.ifft2(np.moveaxis(clipped, (-2, -1), (0, 1))).real
    return np.ascontiguousarray(back[:, :, : kernel.shape[2], : kernel.shape[3]])


def norm(kernel):
    """The largest singular value of the layer with zeros around its image."""
    return convla.largest_singular_value(convla.ConvOperator(kernel, (n, n))).value


# %% [markdown]
# A random layer of 8 to 8 channels, to be brought to half its norm:

# %%
kernel = rng.standard_normal((8, 8, 3, 3)) / np.sqrt(72)
maximum = norm(kernel) / 2
cropped = clip_and_crop(kernel, maximum)
print(f"limit {maximum:.6f}, after clip and crop {norm(cropped):.6f}: {norm(cropped) / maximum - 1:.1%} too large")

# %% [markdown]
# It is a projection onto a set, followed by one onto another: the kernels of that size. Where the first ends is lost in
# the second. To repeat both, again and again, gets there in the end:

# %%
iterates = [kernel]
for _ in range(30):
    iterates.append(clip_and_crop(iterates[-1], maximum))
excess = [norm(each) / maximum - 1 for each in iterates[1:]]
print([f"{value:.2%}" for value in excess[::6]], f"moved by {np.linalg.norm(iterates[-1] - kernel):.4f}")

# %% [markdown]
# But it bounds the circular layer, ends at some kernel and not at the nearest, and proves nothing.
# `clip_singular_values` works on the layer as it is, keeps account of what each projection has moved (Dykstra's
# algorithm), so that it ends at the nearest kernel, and lets `singular_value_bounds` prove the norm:

# %%
clipped = convla.clip_singular_values(kernel, (n, n), maximum=maximum)
bounds = convla.singular_value_bounds(convla.ConvOperator(clipped.kernel, (n, n)))
print(clipped.status, bounds.upper <= maximum)
print(f"norm {norm(clipped.kernel) / maximum:.5f} of the limit, moved by {clipped.distance:.4f}")
print(f"scaled down instead: moved by {np.linalg.norm(kernel) / 2:.4f}")
print(f"clip and crop, then scaled down: {np.linalg.norm(cropped * maximum / norm(cropped) - kernel):.4f}")

# %% [markdown]
# How far off is clip and crop, for other sizes?

# %%
sizes = [1, 2, 4, 8, 16]
too_large = []
for channels in sizes:
    drawn = [rng.standard_normal((channels, channels, 3, 3)) for _ in range(5)]
    limits = [norm(each) / 2 for each in drawn]
    too_large.append([norm(clip_and_crop(each, top)) / top - 1 for each, top in zip(drawn, limits, strict=True)])
plt.figure(figsize=(6, 3.2))
plt.plot(sizes, 100 * np.array(too_large), "o", color="tab:red", alpha=0.6)
plt.axhline(0, color="black", lw=1)
plt.xscale("log", base=2)
plt.xlabel("channels")
plt.ylabel("norm over the limit (%)")
plt.title("What clip and crop leaves")
plt.show()

# %% [markdown]
# None of them obeys the limit. The kernel of one layer, small enough to be sure, comes with a lower bound of the
# distance that any kernel within the limit has to be moved by:

# %%
small = rng.standard_normal((2, 2, 3, 3))
found = convla.clip_singular_values(small, (6, 6), maximum=1.0, rtol=1e-3)
print(f"{found.least_distance:.5f} <= {found.distance:.5f}: {found.status}")
