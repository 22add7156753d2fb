"""Whether stored results belong to a sweep: definitions, and fingerprints of the code that computes them."""
