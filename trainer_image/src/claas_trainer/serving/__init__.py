"""The vLLM servers during an attempt: pause, watch, swap."""
