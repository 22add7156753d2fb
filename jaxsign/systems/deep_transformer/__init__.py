"""Deep transformers."""
