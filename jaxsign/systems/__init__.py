"""What is trained: every system's problem, data, model and task side by side."""
