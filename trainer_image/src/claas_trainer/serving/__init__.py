"""All that the trainer does with vLLM servers: hand-over, liveness, swap."""
