"""What moves the weights: SignGD and its relatives, grids of any Optax transform, and what a transform depends on."""
