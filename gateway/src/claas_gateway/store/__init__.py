"""The database: rollouts, feedback, batches, and the versions that learned from them."""
