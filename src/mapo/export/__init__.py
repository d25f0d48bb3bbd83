"""A set of pairs in the forms that other tools open, and on the hub."""
