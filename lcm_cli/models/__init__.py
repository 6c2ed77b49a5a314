"""Concept models: one file a model of the paper, over shared layers, normalizer and diffusion.

Importing this package imports no torch; its modules do. Start at `config` (presets) and
`checkpoint.load_model`, then `generate.generate`.
"""
