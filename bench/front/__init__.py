"""What `bench/gateway.py` runs: a server paced like a GPU's, the gateway, a plain proxy, and their clients."""
