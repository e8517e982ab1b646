"""The RPCs of the client and of containers, each answered by one method."""
