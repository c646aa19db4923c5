"""Network architectures and solvers; they take numbers and tensors, never paths."""
