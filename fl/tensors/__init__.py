"""Named tensors and their algebra, trees of values, addressed randomness, subspaces and class prototypes."""
