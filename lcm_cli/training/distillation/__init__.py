"""Training small models to do what large ones do."""
