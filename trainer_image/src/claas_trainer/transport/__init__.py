"""Transport of messages: mounted file, termination message, HTTP and pipe. Their content is in `messages`."""
