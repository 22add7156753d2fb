"""Claims as objects: what they are, and those of every system."""
