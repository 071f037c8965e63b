"""What `lightsae pipeline` does: the steps as they are set, and what of them was done."""
