"""A network as a graph of maps: read from a module or a file, measured layer by layer, bounded as a whole.

The functions are `convla.inspect` and `convla.compare`. Nothing is imported here, so that who reads a file of weights
does not wait for what measures layers.
"""
