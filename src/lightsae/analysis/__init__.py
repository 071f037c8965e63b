"""Interpretation: what the latents of a trained dictionary stand for, and how far to trust that."""
