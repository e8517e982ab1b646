"""How messages travel: by mounted file, termination message, HTTP and pipe. What they say is in `messages`."""
