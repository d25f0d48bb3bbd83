"""Pairs that a model makes itself: recipes, prompts, judges."""
