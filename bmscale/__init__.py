"""bmscale: train Transformers from a laptop to a cluster with the same commands."""

__version__ = "0.1.0"
