"""Checkpoints on the move: pulled, converted, listed, verified and pushed."""
