"""DF-GANeXt: a tracked, reproducible detector of GAN-generated faces."""

__version__ = "0.1.0"
