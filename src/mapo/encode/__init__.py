"""Encoding: how pictures and prompts become what a denoiser is given, kept in a cache; and what training sees of a set.

Only ``cache``, ``index`` and ``fill`` import torch.
"""
