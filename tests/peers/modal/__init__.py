"""A server that speaks the wire of the Modal client 1.6.4, runs what was deployed to it, and fails when told to."""
