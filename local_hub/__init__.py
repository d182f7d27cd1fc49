"""A Hub on loopback for the real clients of `huggingface_hub` and `transformers`: no account, no network."""

from .hub import LocalHub

__all__ = ["LocalHub"]
