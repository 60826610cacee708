"""Thin adapters to frameworks; each module needs its framework, and the core needs none."""
