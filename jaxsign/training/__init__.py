"""One run, from its draws to its trace: read task.py, train.py and loop.py first."""
