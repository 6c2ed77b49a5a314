"""Trainers of concept models and of spaces, and the losses they share."""
