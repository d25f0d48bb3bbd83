"""The run folder and the checkpoints in it."""
