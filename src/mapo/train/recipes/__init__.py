"""Recipes of training: TOML files, and reading them."""
