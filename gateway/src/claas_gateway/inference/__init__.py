"""The hot path: OpenAI-compatible inference, passed through to a vLLM pod and recorded."""
