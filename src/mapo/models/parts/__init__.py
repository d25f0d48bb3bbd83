"""The parts of a model on disk: their configuration, their weights, and hashes of both."""
