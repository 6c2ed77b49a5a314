"""Formats of documents: each reads a file into passages, and writes their translations back."""
