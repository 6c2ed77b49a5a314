"""Distillation: train small models to imitate large ones."""
