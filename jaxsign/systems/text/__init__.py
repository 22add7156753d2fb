"""Noisy text: sentiment of real sentences with injected noise, read by one layer of attention."""
