"""`lcm serve`: an HTTP API and a page for a space and models that stay loaded."""
