"""Checkpoints by name: their cards, where their files are, and files of the Hugging Face Hub."""
