"""Images of this repository: built without a daemon, loaded into the cluster."""
