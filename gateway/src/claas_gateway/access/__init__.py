"""Who may do what: API keys, what each key sees, and rates."""
