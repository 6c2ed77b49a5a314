"""Evaluation of spaces and concept models."""
