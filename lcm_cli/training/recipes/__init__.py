"""Training recipes, a module for each kind, and how they are read."""
