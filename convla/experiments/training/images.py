"""Images on a device, as the network is given them: scaled, and where asked standardised and augmented."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["Images"]

BORDER = 4


class Images:
    """Images kept as bytes, and made into floats batch by batch.

    Parameters
    ----------
    images : numpy.ndarray of uint8, of shape (images, channels, height, width)
    labels : numpy.ndarray of uint8, of shape (images,)
    white : int
        The byte that stands for 1.0.
    standard : tuple of numpy.ndarray, optional
        Each channel's mean and standard deviation, in bytes, to subtract and divide by instead.
    device : str
    """

    def __init__(
        self,
        images: np.ndarray[Any, np.dtype[np.uint8]],
        labels: np.ndarray[Any, np.dtype[np.uint8]],
        *,
        white: int,
        standard: tuple[Any, Any] | None,
        device: str,
    ) -> None:
        self.shape = images.shape[1:]
        self._images = torch.from_numpy(images.copy()).to(device)
        self._labels = torch.from_numpy(labels.astype(np.int64)).to(device)
        mean, spread = (np.zeros(1), np.full(1, float(white))) if standard is None else standard
        spread = np.where(spread > 0.0, spread, 1.0)
        self._mean, self._spread = (
            torch.from_numpy(np.asarray(part, dtype=np.float32)).to(device)[:, None, None] for part in (mean, spread)
        )

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, places: Any, generator: np.random.Generator | None = None) -> tuple[Any, Any]:
        """Return images and labels at some places, augmented if a generator is given."""
        images = self._images[places]
        if generator is not None:
            images = _shifted_and_flipped(images, generator)
        return (images.to(torch.float32) - self._mean) / self._spread, self._labels[places]


def _shifted_and_flipped(images: Any, generator: np.random.Generator) -> Any:
    """Crop each image at random from one with a black border, and turn half of them left to right."""
    count, _, height, width = images.shape
    down, right = generator.integers(2 * BORDER + 1, size=(2, count))
    flipped = generator.integers(2, size=count).astype(bool)
    rows = down[:, None] + np.arange(height)
    columns = right[:, None] + np.arange(width)
    columns[flipped] = columns[flipped, ::-1]
    padded = torch.nn.functional.pad(images, (BORDER,) * 4)
    places = (np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :])
    number, row, column = (torch.from_numpy(part).to(images.device) for part in places)
    # The indexed axes come first, the channels last.
    return padded[number, :, row, column].permute(0, 3, 1, 2).contiguous()
