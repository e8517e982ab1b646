"""The engine of an adapter's steps."""
