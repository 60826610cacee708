# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Convolutional similarity of a trained network
#
# CSM proposes to minimise the convolutional similarity of a network's kernels before it is trained. Here a small network
# learns to read scikit-learn's handwritten digits, from three starts, and we look at the similarity of its kernels and of
# its feature maps before and after. The network is written out in NumPy: convla has its convolutions and their adjoints.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import convla
from convla.descent import Adam

digits = load_digits()
images = digits.images[:, None] / 16.0  # (1797, 1, 8, 8)
order = np.random.default_rng(0).permutation(len(images))
train, test = order[:1400], order[1400:]

# %% [markdown]
# ## The network
#
# Two convolutional layers of 12 and 16 kernels, the second with stride 2, ReLU after each, and a linear classifier. The
# gradients are the chain rule with `convla.image_adjoint` and `convla.kernel_adjoint`.

# %%
LAYERS = [{"padding": "same"}, {"padding": "same", "stride": 2}]


def start(seed):
    rng = np.random.default_rng(seed)
    return {
        "conv1": rng.standard_normal((12, 1, 3, 3)) * np.sqrt(2 / 9),
        "conv2": rng.standard_normal((16, 12, 3, 3)) * np.sqrt(2 / 108),
        "linear": rng.standard_normal((10, 256)) * np.sqrt(1 / 256),
    }


def forward(weights, x):
    maps = [x]
    for name, options in zip(("conv1", "conv2"), LAYERS, strict=True):
        maps.append(np.maximum(convla.cross_correlate(maps[-1], weights[name], **options), 0))
    scores = maps[-1].reshape(len(x), -1) @ weights["linear"].T
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return maps, scores / scores.sum(axis=1, keepdims=True)


def gradients(weights, x, labels):
    maps, probabilities = forward(weights, x)
    slope = (probabilities - np.eye(10)[labels]) / len(x)
    result = {"linear": slope.T @ maps[2].reshape(len(x), -1)}
    slope = (slope @ weights["linear"]).reshape(maps[2].shape) * (maps[2] > 0)
    result["conv2"] = convla.kernel_adjoint(slope, maps[1], kernel_size=(3, 3), **LAYERS[1])
    slope = convla.image_adjoint(slope, weights["conv2"], image_shape=(8, 8), **LAYERS[1]) * (maps[1] > 0)
    result["conv1"] = convla.kernel_adjoint(slope, maps[0], kernel_size=(3, 3), **LAYERS[0])
    return result


def fit(weights, epochs=12, seed=0):
    rng = np.random.default_rng(seed)
    weights = dict(weights)
    optimizers = {name: Adam(0.003) for name in weights}
    accuracy = []
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(train), 28):
            step = gradients(weights, images[batch], digits.target[batch])
            weights = {name: optimizers[name].step(weights[name], step[name]) for name in weights}
        accuracy.append(np.mean(forward(weights, images[test])[1].argmax(axis=1) == digits.target[test]))
    return weights, accuracy


# %% [markdown]
# ## Three starts
#
# The same random kernels as they are; after CSM Algorithm 1, which minimises the plain similarity; and after the
# scale-invariant form with every kernel's norm kept.

# %%
plain = start(0)
kernels = {name: plain[name] for name in ("conv1", "conv2")}
starts = {
    "as drawn": plain,
    "Algorithm 1": {**plain, **convla.initialize_network(kernels, iterations=200).kernels},
    "norms kept": {
        **plain,
        **convla.initialize_network(kernels, iterations=200, learning_rate=0.01, keep_norms=True).kernels,
    },
}


def per_pair(kernel):
    count = len(kernel)
    return float(convla.convolutional_similarity(kernel, normalized=True)) / (count * (count - 1) / 2)


def feature_cosine(weights, layer):
    features = forward(weights, images[test[:100]])[0]
    previous, name = features[layer], ("conv1", "conv2")[layer]
    maps = convla.cross_correlate(previous, weights[name], **LAYERS[layer]).reshape(100, len(weights[name]), -1)
    gram = maps @ maps.transpose(0, 2, 1)
    norms = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    cosines = np.abs(gram) / np.maximum(norms[:, :, None] * norms[:, None, :], 1e-300)
    return cosines[:, *np.triu_indices(len(weights[name]), 1)].mean()


print(f"{'start':12} {'':8} {'L_CS 1':>8} {'L_CS 2':>8} {'pair 1':>7} {'pair 2':>7} {'|cos| 1':>8} {'|cos| 2':>8}")
trained = {}
for name, weights in starts.items():
    trained[name] = fit(weights)
    for moment, w in (("before", weights), ("after", trained[name][0])):
        plain_form = convla.network_similarity({key: w[key] for key in kernels}).layers
        print(
            f"{name:12} {moment:8} {plain_form['conv1']:8.1f} {plain_form['conv2']:8.1f} "
            f"{per_pair(w['conv1']):7.3f} {per_pair(w['conv2']):7.3f} "
            f"{feature_cosine(w, 0):8.3f} {feature_cosine(w, 1):8.3f}"
        )

# %% [markdown]
# Algorithm 1 lowers the plain similarity to a fraction, and the value per pair of kernels scaled to norm 1 hardly moves:
# what it found is shorter kernels, and the feature maps stay as similar as they were. With norms kept the kernels turn
# instead, and the cosines of the feature maps fall. Training then moves all of them, and brings much of the similarity
# back: an initialisation is not a constraint.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for name, (_, accuracy) in trained.items():
    left.plot(range(1, len(accuracy) + 1), accuracy, marker="o", markersize=3, label=name)
left.set(xlabel="epoch", ylabel="test accuracy", ylim=(0.8, 1.0))
left.legend()
for name, weights in starts.items():
    norms = np.linalg.norm(weights["conv2"].reshape(16, -1), axis=1)
    right.plot(np.sort(norms), label=name)
right.set(xlabel="kernel of the second layer, sorted", ylabel="norm at the start", ylim=(0, None))
plt.show()

# %% [markdown]
# ## What the loss cannot see
#
# Its guarantee is for full padding and stride 1. The second layer here has stride 2: its feature maps' inner products are
# compared with those of full padding, which convolutional similarity does bound.

# %%
weights = trained["norms kept"][0]
inputs = forward(weights, images[test[:100]])[0][1]
pairs = np.triu_indices(16, 1)
inner = {}
for name, options in {"full": {"padding": "full"}, "same, stride 2": LAYERS[1]}.items():
    maps = convla.cross_correlate(inputs, weights["conv2"], **options).reshape(100, 16, -1)
    inner[name] = (maps @ maps.transpose(0, 2, 1))[:, *pairs]
gap = np.abs(4 * inner["same, stride 2"] - inner["full"]) / np.abs(inner["full"])
differ = np.mean(np.sign(inner["full"]) != np.sign(inner["same, stride 2"]))
print(f"median gap {np.median(gap):.2f}; the sign differs for {100 * differ:.0f} % of the pairs")
similarity = np.array(
    [[float(convla.convolutional_similarity(weights["conv2"][[i, j]])) for j in range(16)] for i in range(16)]
)[pairs]
# The autocorrelation of all pairs of input channels, at the lags of a 3x3 kernel.
window = np.stack(
    [
        np.einsum("bchw,bdhw->bcd", padded[:, :, 2:-2, 2:-2], padded[:, :, 2 + r : 10 + r, 2 + s : 10 + s])
        for padded in [np.pad(inputs, ((0, 0), (0, 0), (2, 2), (2, 2)))]
        for r in range(-2, 3)
        for s in range(-2, 3)
    ],
    axis=-1,
)
bound = np.sqrt(similarity) * np.sqrt((window**2).sum(axis=(1, 2, 3)))[:, None]
print(f"full padding: the bound holds for all pairs: {bool(np.all(np.abs(inner['full']) <= bound))};", end=" ")
print(f"median of abs(inner product) over bound: {np.median(np.abs(inner['full']) / bound):.2f}")
