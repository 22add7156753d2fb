"""Attention with residuals."""
