"""Hand-overs: what happens to serving during a step."""
