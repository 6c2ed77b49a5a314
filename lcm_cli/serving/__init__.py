"""`lcm serve`: an HTTP API and a web page on a space and a model that stay loaded."""
