"""What happens to serving while a step needs its device: a strategy of its own."""
