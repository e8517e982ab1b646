"""The machine that the cluster runs on: what it must have, what is changed, and what is put back."""
