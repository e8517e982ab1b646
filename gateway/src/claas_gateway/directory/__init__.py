"""Which adapters, base models and servers there are: an index fed by watches."""
