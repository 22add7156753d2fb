"""The rooms that touch the disk."""
