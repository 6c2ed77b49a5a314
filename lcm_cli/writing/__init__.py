"""Answers in words: continuations, summaries and expansions, and the signs that one has failed."""
