"""Training spaces and concept models."""
