"""What was asked and answered, and with which tokens, as rollouts."""
