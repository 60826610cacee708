"""Maps made of maps: sums, multiples, products, powers, stacks and block diagonals, and the simplest of their parts.

Each is one class, which knows its transpose, so that it says once what it does to an array. Nothing is computed with
kernels of floats: those of a map are the ones that it was made of, whatever the signs and factors before it, and
gradients with respect to them are those of the caller's own.
"""

from convla.algebra.composite import Composite, Converted, Product, Scaled, Sum
from convla.algebra.leaves import Diagonal, Identity, Zero, diagonal, identity, zero
from convla.algebra.stacks import BlockDiagonal, Stack, block_diagonal, hstack, vstack

__all__ = [
    "BlockDiagonal",
    "Composite",
    "Converted",
    "Diagonal",
    "Identity",
    "Product",
    "Scaled",
    "Stack",
    "Sum",
    "Zero",
    "block_diagonal",
    "diagonal",
    "hstack",
    "identity",
    "vstack",
    "zero",
]
