"""One run, from its draws to its trace. Read task.py, train.py and loop.py first."""
