"""Noisy digits: a small transformer on real images with a noisy border."""
