"""The other singular vector of a pair: the same wave, a quarter of a period on.

Away from the edges a real convolution does not see the phase of a plane wave. So unless the wave's frequency is its own
conjugate, singular values come in pairs, whose two vectors are the real and the imaginary part of one complex wave and
whose values differ by what the edges make of the phase: by 1e-9 to 1e-4 of them for usual layers. An iteration from one
vector cannot tell the two apart before its residual is smaller than that.
"""

from __future__ import annotations

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla.typing import Array

__all__ = ["conjugate_wave"]


def conjugate_wave(image: Array) -> Array | None:
    """Return the imaginary part of the wave of which an image is the real part.

    Parameters
    ----------
    image : array of shape (channels, *positions)
        Real, not zero.

    Returns
    -------
    array of shape (channels, *positions) or None
        None where the image's strongest frequency is its own conjugate: a wave without a phase.

    Notes
    -----
    Every frequency goes with the nearer of the strongest one and its conjugate, and is turned by -i or i.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.spectra.companion import conjugate_wave
    >>> x = 2 * np.pi * np.arange(8) / 8
    >>> bool(np.allclose(conjugate_wave(np.cos(2 * x)[None]), np.sin(2 * x)[None]))
    True
    >>> conjugate_wave(np.cos(4 * x)[None]) is None
    True
    """
    xp = namespace(image)
    sizes = tuple(image.shape[1:])
    axes = tuple(range(1, image.ndim))
    complex_dtype = xp.complex64 if image.dtype == xp.float32 else xp.complex128
    transform = xp.fft.fftn(xp.astype(image, complex_dtype), axes=axes)
    power = to_numpy(xp.sum(xp.real(transform) ** 2 + xp.imag(transform) ** 2, axis=0))
    strongest = np.unravel_index(int(np.argmax(power)), sizes)
    # Distances on the torus, in whole steps: ties, of frequencies that go with neither, are exact.
    distances = []
    for sign in (1, -1):
        squares = np.zeros(sizes)
        for axis, (size, index) in enumerate(zip(sizes, strongest, strict=True)):
            steps = (np.arange(size) - sign * int(index)) % size
            scaled = np.minimum(steps, size - steps) / size
            squares = squares + np.reshape(scaled**2, (-1, *(1,) * (len(sizes) - axis - 1)))
        distances.append(squares)
    side = np.sign(np.round(distances[1] - distances[0], 12))
    if side[strongest] == 0:
        return None
    turned = transform * on_device_of(-1j * side, transform, xp, dtype=transform.dtype)
    return xp.astype(xp.real(xp.fft.ifftn(turned, axes=axes)), image.dtype)
