"""From messages and texts to token ids, and back."""
