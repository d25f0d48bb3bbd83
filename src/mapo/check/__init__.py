"""What is wrong with a set of pairs before anything is trained on it."""
