"""Exact truth about tokens, and what the latents of an SAE know of it: detection, splitting, absorption, probes."""
