"""From a request to an answer in vLLM's shape."""
