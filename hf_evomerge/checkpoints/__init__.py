"""Checkpoints: everything that has a config and named tensors that can be read, and the one way to
write them."""
