"""Training of Transformer language models."""
