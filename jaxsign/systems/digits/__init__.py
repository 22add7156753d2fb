"""Noisy digits: real images in a noisy border."""
