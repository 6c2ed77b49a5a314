"""Formats of documents: each reads a file into passages and writes others in their place."""
