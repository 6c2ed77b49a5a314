"""Measuring spaces and concept models."""
