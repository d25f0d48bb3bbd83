"""How several processes train as one: their sums and their order, who has stopped, and parts of tensors."""
