# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Inspect a trained network
#
# What did training do to the layers of a network, what bounds the whole, and which layers make that bound large? A small
# network with normalisations and a residual block learns scikit-learn's handwritten digits here; then one call looks at
# every layer as it really runs. The same call takes any PyTorch module, and `convla inspect` files of ONNX and Keras.

# %%
import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import convla
from convla.frameworks.torch import operators
from convla.networks.plot import bound_figure, comparison_figure

digits = load_digits()
images = torch.tensor(digits.images[:, None] / 16.0, dtype=torch.float32)
labels = torch.tensor(digits.target)
train, test = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split([1400, 397])


# %%
class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


torch.manual_seed(0)
network = nn.Sequential()
network.add_module("stem", nn.Conv2d(1, 8, 3, padding=1))
network.add_module("block", Residual(8))
network.add_module("down", nn.Conv2d(8, 16, 3, stride=2, padding=1))
network.add_module("relu", nn.ReLU())
network.add_module("pool", nn.AvgPool2d(2))
network.add_module("flat", nn.Flatten())
network.add_module("head", nn.Linear(64, 10))
start = copy.deepcopy(network).eval()

# %% [markdown]
# ## Train

# %%
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
for _ in range(8):
    for batch in train[torch.randperm(len(train))].split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
network.eval()
with torch.no_grad():
    accuracy = (network(images[test]).argmax(1) == labels[test]).double().mean()
f"{accuracy:.1%} of the test images are read right"

# %% [markdown]
# ## Every layer, as it runs
#
# A row for each layer, with the image that it really has, and one for each run of linear maps that stand together: the
# convolution of the block and the normalisation behind it act as one map. `at_least` and `at_most` enclose the largest
# singular value, provably.

# %%
example = images[test[:1]]
report = convla.inspect(network, example)
columns = [
    "layer",
    "kind",
    "image",
    "stride",
    "sigma_max",
    "at_most",
    "sigma_min",
    "condition",
    "stable_rank",
    "status",
]
for record in report.records():
    print(
        "  ".join(f"{record[name]:.4g}" if isinstance(record[name], float) else str(record[name]) for name in columns)
    )

# %% [markdown]
# ## The spectra
#
# The same layers as operators: all singular values, before and after training.

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
for panel, name in zip(panels, ["stem", "block.conv", "down"], strict=True):
    for label, model in (("before", start), ("after", network)):
        density = convla.spectral_density(operators(model, example)[name], bins=24)
        panel.stairs(density.shares, density.edges, label=label)
    panel.set(title=name, xlabel="singular value")
panels[0].set_ylabel("share")
_ = panels[0].legend()

# %% [markdown]
# ## What bounds the network
#
# For all inputs x and y the outputs differ by at most `upper` times what the inputs do: proved, for the weights as they
# are. `lower` is what the network was seen to do at the example. The truth is between.

# %%
report.certificate

# %%
bound_figure(report.certificate)

# %% [markdown]
# Each line is a step that changes the bound, from that of what it takes to its own. A sum adds the bounds of its two
# terms; average pooling halves. By how much would the bound be smaller if a layer stretched nothing?

# %%
{step.name: round(step.share, 2) for step in report.certificate.largest_shares}

# %% [markdown]
# ## What training changed

# %%
changes = convla.compare(convla.inspect(start, example), report)
comparison_figure(changes)

# %%
bounds = [one.certificate.upper for one in (changes.before, changes.after)]
f"The bound grew from {bounds[0]:.3g} to {bounds[1]:.3g}, {bounds[1] / bounds[0]:.0f} times"

# %% [markdown]
# How much of that is the network, and how much the bound? Along the line between two images of the test set the network
# stretches far less:

# %%
with torch.no_grad():
    pairs = images[test[:200]], images[test[197:397]]
    moved = (network(pairs[0]) - network(pairs[1])).norm(dim=1) / (pairs[0] - pairs[1]).flatten(1).norm(dim=1)
assert float(moved.max()) <= report.certificate.upper
f"At most {np.max(moved.numpy()):.3g} between 200 pairs of images, {report.certificate.lower:.3g} at the example"
