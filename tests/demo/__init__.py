"""The demo: from nothing to an adapter that learned from feedback, on one machine."""
