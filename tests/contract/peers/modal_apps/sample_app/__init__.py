"""A small app that the tests of the peer deploy."""
