"""What this gateway is, whether it works, how its routes are described, and the deletion of a user's data."""
