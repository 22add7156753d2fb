"""Reading and writing results, checkpoints and trajectories."""
