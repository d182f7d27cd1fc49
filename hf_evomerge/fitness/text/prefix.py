"""Shared prefixes: what the prompts of a batch begin with is run once, and its keys and values are
repeated for every row."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..example import Example
from .encoding import device_of, length_batches

if TYPE_CHECKING:
    import torch


LEAST_SAVED = 0.2  # of a group's tokens; what is saved below it, the second call takes


def prefix_batches(
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    examples: Sequence[Example],
    batch_size: int,
) -> Iterator[tuple[list[int], int]]:
    """Cut prompts into batches of similar length, each of one prefix.

    Args:
        prompts: Token ids of each prompt.
        lengths: What they are sorted by.
        examples: The example of each prompt: those with the same shots are a group.
        batch_size: Prompts in a batch.

    Yields:
        Indices of a batch, and the number of tokens that all of its group begin with, such as a
        chat's system message; 0 where these are too few to save time.
    """
    groups: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(example.shots, []).append(number)
    for group in groups.values():
        shared = shared_length([prompts[i] for i in group])
        saved = shared * (len(group) - 1)
        if saved < LEAST_SAVED * sum(lengths[i] for i in group):
            shared = 0
        for rows in length_batches([lengths[i] for i in group], batch_size):
            yield [group[row] for row in rows], shared


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with; each keeps at least its last token for
    itself.

    Example:
        >>> shared_length([[1, 2, 3, 4], [1, 2, 3]]), shared_length([[5]])
        (2, 0)
    """
    most = min(map(len, prompts)) - 1
    for at, tokens in enumerate(zip(*prompts, strict=False)):
        if at == most or len(set(tokens)) > 1:
            return at
    return 0


# Attention is causal, so keys and values of a prefix do not depend on what follows: with a prefix
# of S tokens and B rows of L more, a batch costs S + B L tokens and not B (S + L). The sums are
# taken in another order than without, so last bits differ; they are the same in every run. Only
# plain caches are repeated: of states, windows and indices a row's own cannot be told from the
# prefix's, and models that see number their positions otherwise.
class SharedPrefix:
    """The last prefix that a model has run, for the batches that begin with it.

    Args:
        model: A causal language model.
        keep: Whether later batches are given the same keys and values. Where gradients are wanted
            they are not: a backward pass frees what has led to them.
    """

    def __init__(self, model: Any, *, keep: bool = True) -> None:
        self._model = model
        self._keep = keep
        self._tokens: list[int] = []
        self._states: list[tuple[torch.Tensor, torch.Tensor]] | None = None

    def repeated(self, tokens: Sequence[int], rows: int) -> dict[str, Any] | None:
        """Arguments that give the model so many rows of a prefix's keys and values.

        Args:
            tokens: The prefix.
            rows: Rows of the batch.

        Returns:
            The argument for the cache; None where the prefix is empty, or the model's cache is
            none of keys and values alone.
        """
        from transformers import DynamicCache

        if not tokens or self._name is None:
            return None
        if not self._keep or self._tokens != tokens:
            self._tokens = list(tokens)
            self._states = self._run(self._name)
        if self._states is None:
            self._name = None  # which holds for any prefix
            return None
        rowwise = [
            (keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
            for keys, values in self._states
        ]
        return {self._name: DynamicCache(rowwise)}

    @cached_property
    def _name(self) -> str | None:
        """Name of the model's argument for its cache, which transformers has changed with 5.24."""
        config = self._model.config
        if config.get_text_config() is not config or not getattr(config, "use_cache", True):
            return None
        known = inspect.signature(self._model.forward).parameters
        return next((name for name in ("cache", "past_key_values") if name in known), None)

    def _run(self, name: str) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """Keys and values of the prefix in each layer, of one row."""
        import torch
        from transformers.cache_utils import DynamicCache, DynamicLayer

        ids = torch.tensor([self._tokens], device=device_of(self._model))
        cache = getattr(self._model(input_ids=ids, use_cache=True, logits_to_keep=1), name, None)
        if type(cache) is not DynamicCache:
            return None
        layers: list[Any] = list(cache.layers)
        if not all(type(layer) is DynamicLayer and layer.is_initialized for layer in layers):
            return None
        return [(layer.keys, layer.values) for layer in layers]
