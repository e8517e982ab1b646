"""The loop: events wake keys, a queue runs them, each key gets one pass at a time."""
