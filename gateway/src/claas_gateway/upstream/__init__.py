"""The way to the vLLM pods: which one takes a request, with which tokens, over which connections."""
