"""The language model behind the wire: adapters, training, sampling, and their messages."""
