"""What a Deployment says about its vLLM servers, and what follows for the hand-over."""
