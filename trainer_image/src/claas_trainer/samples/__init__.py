"""Samples: from users' texts to token ids, before any engine sees them."""
