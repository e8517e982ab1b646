"""Settings of vLLM servers, from themselves or their Deployment, and the choice of the hand-over."""
