"""Synthetic activations: sparse sums of features that are known, to score dictionaries against the truth."""
