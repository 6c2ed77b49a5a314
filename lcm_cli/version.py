"""The version of lcm."""

__version__ = "0.1.0"
