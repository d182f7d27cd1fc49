"""Layer groups: which part of the model a tensor belongs to, and which of a parameter's values applies to it. No torch.

A layer, in the words of arXiv:2403.13187 (section 3.1), is a transformer block or the input or output embeddings. A group is
one of them, a run of blocks, or the attention or MLP half of a run of blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ..errors import RecipeError

Kind = Literal["embed", "block", "head"]
Half = Literal["attn", "mlp"]

_BLOCK = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.(.+)$")
_EMBEDDING = re.compile(r"emb|wte|wpe|project_in")
_HEAD = re.compile(r"embed_out|lm_head")
_MLP = re.compile(
    r"mlp|ffn|feed_?forward|expert|moe|router|(?:^|\.)fc\d|(?:^|\.)gate\b|post_attention_layernorm|ln_2|(?:^|\.)final_layer_norm|"
    r"dense_h_to_4h|dense_4h_to_h"
)
_KEY = re.compile(r"(?:(embed|head|default)|blocks\.(\d{1,6})(?:-(\d{1,6}))?(?:\.(attn|mlp))?)")


@lru_cache(maxsize=65536)
def classify(tensor_name: str) -> tuple[Kind, int | None, Half | None]:
    """Where a tensor belongs.

    Args:
        tensor_name: The raw name in the checkpoint, such as ``model.layers.3.mlp.up_proj.weight``.

    Returns:
        Kind (``embed``, ``block`` or ``head``), block index and half (``attn`` or ``mlp``); the last two are None outside the
        blocks. A norm counts with what it feeds: the first of a block with attention, the second with the MLP, the final one
        with the head.
    """
    if block := _BLOCK.search(tensor_name):
        return "block", int(block[1]), "mlp" if _MLP.search(block[2]) else "attn"
    if _EMBEDDING.search(tensor_name) and not _HEAD.search(tensor_name):
        return "embed", None, None
    return "head", None, None


@dataclass(frozen=True)
class GroupKey:
    """A parsed group key: ``embed``, ``blocks.0``, ``blocks.0-3``, ``blocks.4.attn``, ``head`` or ``default``."""

    kind: Literal["embed", "block", "head", "default"]
    first: int = 0
    last: int = 0
    half: Half | None = None

    def covers(self, tensor_name: str) -> bool:
        """Whether a tensor belongs to the group; ``default`` covers nothing by itself."""
        kind, block, half = classify(tensor_name)
        if kind != self.kind:
            return False
        return block is None or (self.first <= block <= self.last and self.half in (None, half))


@lru_cache(maxsize=4096)
def parse_key(key: str) -> GroupKey:
    """Read a group key; raises `RecipeError` if it is none."""
    match = _KEY.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        raise RecipeError(
            f"{key!r} is not a layer group; write embed, head, default, blocks.3, blocks.0-7, blocks.3.attn or blocks.0-7.mlp"
        )
    if match[1]:
        return GroupKey("block" if match[1] == "blocks" else match[1])  # type: ignore[arg-type]
    first, last = int(match[2]), int(match[3] or match[2])
    if last < first:
        raise RecipeError(f"{key!r}: the first block of a layer group comes first; write blocks.{last}-{first}")
    return GroupKey("block", first, last, match[4])  # type: ignore[arg-type]


@lru_cache(maxsize=262144)
def _select(keys: tuple[str, ...], tensor_name: str) -> str:
    matching = [key for key in keys if parse_key(key).covers(tensor_name)]
    if len(matching) > 1:
        raise RecipeError(f"layer groups {matching[0]} and {matching[1]} both name {tensor_name}; keep one of them")
    if matching:
        return matching[0]
    if "default" in keys:
        return "default"
    raise RecipeError(f"no layer group names {tensor_name} (found {', '.join(keys)}); add its group, or default")


def resolve(value: float | Mapping[str, float], tensor_name: str) -> float:
    """The number that applies to a tensor.

    Args:
        value: A number for the whole model, or one per layer group.
        tensor_name: The raw name of the tensor.

    Raises:
        RecipeError: No group names the tensor and there is no ``default``, or two do.
    """
    if isinstance(value, Mapping):
        return value[_select(tuple(value), tensor_name)]
    return value


def check_groups(value: Mapping[str, float], layer_count: int) -> None:
    """Raise `RecipeError` unless every tensor of a model with so many blocks has exactly one value."""
    for key in value:
        group = parse_key(key)
        if group.kind == "block" and group.last >= layer_count:
            raise RecipeError(f"layer group {key}: there are {layer_count} blocks, 0 to {layer_count - 1}")
    for name in one_of_each(layer_count):
        resolve(value, name)


def one_of_each(layer_count: int) -> list[str]:
    """A tensor name for every place that may have a value of its own."""
    halves = [f"layers.{block}.{half}.weight" for block in range(layer_count) for half in ("self_attn", "mlp")]
    return ["embed_tokens.weight", *halves, "lm_head.weight"]


@dataclass(frozen=True)
class Grouping:
    """How a model is cut into layer groups: the granularity of a search.

    Attributes:
        blocks_per_group: Blocks per group; ``"all"``: one group of all blocks, next to ``embed`` and ``head``; ``"model"``: the
            whole model is one group, ``default``, which is what arXiv:2403.13187 reports (finer groups gained nothing there).
        split_attention: Whether the attention and the MLP half of the blocks are groups of their own.
        layer_count: Number of blocks.
    """

    blocks_per_group: int | Literal["all", "model"]
    split_attention: bool
    layer_count: int

    def __post_init__(self) -> None:
        size = self.blocks_per_group
        if size not in ("all", "model") and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise RecipeError(f"blocks_per_group: {size!r}; give a whole number from 1, 'all' or 'model'")
        if self.layer_count < 1:
            raise RecipeError(f"layer_count: {self.layer_count}; a model has at least one block")

    @property
    def keys(self) -> list[str]:
        """The group keys in the order of the layers; the last group of blocks may be smaller."""
        if self.blocks_per_group == "model":
            return ["default"]
        size = self.layer_count if self.blocks_per_group == "all" else int(self.blocks_per_group)
        keys = ["embed"]
        for first in range(0, self.layer_count, size):
            last = min(first + size, self.layer_count) - 1
            blocks = f"blocks.{first}" if first == last else f"blocks.{first}-{last}"
            keys += [f"{blocks}.attn", f"{blocks}.mlp"] if self.split_attention else [blocks]
        return [*keys, "head"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def key_of(self, tensor_name: str) -> str:
        """The group that a tensor belongs to."""
        return _select(tuple(self.keys), tensor_name)
