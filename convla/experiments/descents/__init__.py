"""Descents on small kernels, many repetitions at once, that watch the similarity of the feature maps."""
