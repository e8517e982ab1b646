"""Forward and backward passes of the base model with its adapter."""
