"""The study: what the paper claims, on the built-in world."""
