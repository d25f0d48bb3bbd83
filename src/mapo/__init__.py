"""Align text-to-image diffusion models with pairs of pictures, without a reference model (MaPO, arXiv 2406.06424)."""

import logging

import mapo.lab  # noqa: F401  # makes the built-in world known by its name; loads nothing else

logging.getLogger(__name__).addHandler(logging.NullHandler())  # says nothing until somebody asks: see progress.py

__version__ = "0.2.0.dev0"
