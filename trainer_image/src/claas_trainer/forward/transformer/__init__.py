"""A forward and backward of our own for decoders of the Llama family. Needs torch alone."""
