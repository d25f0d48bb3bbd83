"""Align text-to-image diffusion models with pairs of pictures, without a reference model (MaPO, arXiv 2406.06424)."""

__version__ = "0.1.0"
