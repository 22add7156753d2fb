"""Whether a stored sweep is the one that is asked for: a definition is what it computes."""
