"""Names of layers and tensors as other programs write them."""
