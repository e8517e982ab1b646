"""The whole product on the test cluster, as a user would have it: for the demo and the end-to-end tests."""
