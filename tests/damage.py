"""Files damaged at random."""

from __future__ import annotations

import numpy as np


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """Return the bytes cut short, with bits flipped, bytes near the ends replaced, or a part lost or doubled."""
    content = bytearray(whole)
    kind = rng.integers(4)
    if kind == 0:
        return whole[: rng.integers(len(whole))]
    if kind == 1:
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(min(len(content), 600)))
            content[at if rng.random() < 0.5 else -1 - at] = rng.integers(256)
    else:
        low, high = sorted(rng.integers(len(content) + 1, size=2))
        content = content[:low] + content[high:] if rng.random() < 0.5 else content[:high] + content[low:]
    return bytes(content)
