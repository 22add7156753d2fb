"""Kernel attention."""
