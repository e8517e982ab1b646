"""What the plans ask for, done: Secrets, files, jobs, records, and prompts asked again."""
