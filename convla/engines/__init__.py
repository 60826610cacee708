"""Faster kernels for named operations, reached only through `convla._dispatch`."""
