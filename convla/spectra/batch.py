"""The groups of a map as a batch of maps of equal shapes, whose vectors share the images that the map is applied to."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from convla._array import namespace
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.typing import Array, Namespace

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """A map that is a direct sum over its groups of channels, as one map for each group.

    Vectors are rows: an array (groups, j, n) holds j vectors of each group. One image has room for a vector of every
    group, so that j applications of the map multiply them all.
    """

    linear_map: LinearMap
    groups: int

    @functools.cached_property
    def order(self) -> int:
        """The length of a vector of one group."""
        return self.linear_map.shape[1] // self.groups

    @functools.cached_property
    def _xp(self) -> Namespace:
        return namespace(self.linear_map.like)

    @functools.cached_property
    def _transposed(self) -> Batch:
        return Batch(self.linear_map.T, self.groups)

    @functools.cached_property
    def _matrices(self) -> Array | None:
        """The maps of a convolution of one tap on one position, as matrices (groups, m, n); None of any other map."""
        operator = self.linear_map
        if not isinstance(operator, ConvOperator):
            return None
        geometry = operator.geometry
        if math.prod(operator.domain_shape) != geometry.in_channels:
            return None
        if math.prod(geometry.kernel_size) > 1 or math.prod(geometry.output_shape) > 1:
            return None
        if any(low for low, _ in geometry.padding):  # what the only output reads is not the image's only position
            return None
        return self._xp.reshape(operator.kernel, (self.groups, -1, self.order))

    def images(self, rows: Array) -> Array:
        """Turn rows (groups, j, n) into images (j, *domain_shape)."""
        xp = self._xp
        return xp.reshape(xp.permute_dims(rows, (1, 0, 2)), (-1, *self.linear_map.domain_shape))

    def rows(self, images: Array) -> Array:
        """Turn images (j, *shape) into rows (groups, j, n)."""
        xp = self._xp
        return xp.permute_dims(xp.reshape(images, (images.shape[0], self.groups, -1)), (1, 0, 2))

    def apply(self, rows: Array) -> Array:
        """Multiply rows (groups, j, n) by the maps of the groups: (groups, j, m)."""
        if self._matrices is not None:
            return rows @ self._xp.matrix_transpose(self._matrices)
        return self.rows(self.linear_map._apply(self.images(rows)))

    def adjoint(self, rows: Array) -> Array:
        """Multiply rows (groups, j, m) by the transposes: (groups, j, n)."""
        if self._matrices is not None:
            return rows @ self._matrices
        return self._transposed.apply(rows)

    def gram(self, rows: Array) -> Array:
        """Multiply rows (groups, j, n) by the Gram matrices of the groups."""
        if self._matrices is not None:
            return self.adjoint(self.apply(rows))
        return self.rows(self.linear_map._adjoint(self.linear_map._apply(self.images(rows))))
