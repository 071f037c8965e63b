"""Toy models that show on a postcard what happens in a language model."""
