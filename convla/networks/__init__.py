"""A network as a graph of maps: read from a module or a file, measured layer by layer, bounded as a whole."""

from convla.networks.comparison import compare
from convla.networks.inspection import inspect

__all__ = ["compare", "inspect"]
