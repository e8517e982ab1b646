"""Clients for the cluster and for servers, used by observe and act."""
