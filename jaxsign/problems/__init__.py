"""Shapes and numbers of the companion systems, one file a system; those of the paper are in jaxsign.problem."""
