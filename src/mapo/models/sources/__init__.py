"""Where a model comes from: a folder, one file, the hub, a checkpoint of a run; and another VAE beside it."""
