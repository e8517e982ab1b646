"""From samples to token ids, before any engine sees them."""
