"""Parts of the measurements beside a real vLLM."""
