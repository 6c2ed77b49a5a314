"""The report of an evaluation: tables, plots and an HTML page."""
