"""Growth as pure functions on plain tensors: how dimensions, matrices, vectors and stacks of layers grow."""
