"""How far a set of pairs is from a model."""
