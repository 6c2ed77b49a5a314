"""The report of an evaluation: its tables, its plots and its page."""
