"""Training of spaces and concept models."""
