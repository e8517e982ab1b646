"""Plans for a LoraAdapter."""
