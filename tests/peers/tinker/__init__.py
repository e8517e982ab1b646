"""A server that speaks the wire of the Tinker SDK 0.38 with a real small model behind it, and fails when told to."""
