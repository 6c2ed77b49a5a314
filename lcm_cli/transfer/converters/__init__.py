"""Readers of the checkpoints of other programs."""
