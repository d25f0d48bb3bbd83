"""Captions of a folder of pictures: read from where programs and people put them, or written by a model."""
