"""What becomes of feedback, decided without I/O."""
