"""Modal in tests of the operator: the peer, with an app that plays vLLM."""
