"""Shared by the tests of transfer: the golden files of the tests of models."""

from models.conftest import golden

__all__ = ["golden"]
