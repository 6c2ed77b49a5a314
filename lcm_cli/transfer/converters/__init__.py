"""Readers of other programs' checkpoints."""
