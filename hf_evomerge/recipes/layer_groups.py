"""Layer groups: which part of the model a tensor belongs to, and which of a parameter's values
applies to it. No torch.

A layer, in the words of arXiv:2403.13187, is a transformer block or the input or output embeddings.
A group is one of them, a run of blocks, or the attention or MLP half of a run of blocks; of a
mixture of experts also its routers or its experts, which are parts of the MLP half. Beside groups,
a name pattern such as ``*down_proj*`` names tensors, and a list of numbers, a gradient, runs over
the blocks; under the whole name of a tensor it runs over the tensor's rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Literal

from ..errors import RecipeError

Kind = Literal["embed", "block", "head"]
Half = Literal["attn", "mlp", "router", "experts"]

_BLOCK = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.(.+)$")
_EMBEDDING = re.compile(r"emb|wte|wpe|project_in")
_HEAD = re.compile(r"embed_out|lm_head")
_MLP = re.compile(
    r"mlp|ffn|_ff_|feed_?forward|expert|moe|router|(?:^|\.)fc\d|(?:^|\.)gate\b|ln_2|(?:^|\.)final_layer_norm|channel_pre_norm|"
    r"dense_h_to_4h|dense_4h_to_h"
)
# that of most architectures, in front of the MLP; it stands behind attention where the MLP has
# norms of other names
_MLP_WITH_NORM = re.compile(rf"{_MLP.pattern}|post_attention_layernorm")
_OTHER_NORMS = re.compile(r"(?:pre|post)_feedforward_layernorm|pre_mlp_layernorm")
# what follows the number of a block of a U-Net or DiT; the other is RecurrentGemma's attention
_PICTURE_BLOCK = re.compile(r"(?!temporal_block\.)(?:\w+_)?blocks?\.")
_PICTURE_ATTENTION = re.compile(r"\.(?:to_(?:add_)?(?:q|k|v|out|qkv)|add_[qkv]_proj)\b")
_ROUTER = re.compile(
    r"(?:^|\.)(?:\w*(?:mlp|ffn|feed_?forward|moe)\.(?:\w+\.)?(?:gate|router)|router)\b(?!_)|shared_expert_gate|moe_statics"
)
_EXPERTS = re.compile(r"expert|moe\.(?:input|output)_linear")
# may be named where it is the embedding matrix: the same file then does for models of both kinds
TIED_HEAD = "lm_head.weight"
_SPARSE = ("router", "experts")
_KEY = re.compile(
    r"(?:(embed|head|default)|blocks\.(\d{1,6})(?:-(\d{1,6}))?(?:\.(attn|mlp|router|experts))?)"
)

_NAME = re.compile(
    r"(?!(?:embed|blocks?|head|default)\.)(?:\d_\w+/)?[A-Za-z_]\w*(?:\.\w+)*\.[A-Za-z_]\w*"
)  # a tensor's


@lru_cache(maxsize=65536)
def classify(tensor_name: str, post_norms: bool = False) -> tuple[Kind, int | None, Half | None]:
    """Classify a tensor by its name.

    Args:
        tensor_name: The raw name in the checkpoint, such as ``model.layers.3.mlp.up_proj.weight``.
        post_norms: Whether ``post_attention_layernorm`` ends the attention of this model, see
            `has_post_norms`.

    Returns:
        Kind (``embed``, ``block`` or ``head``), block index and half (``attn``, ``mlp``, or of the
        latter ``router`` or ``experts``); the last two are None outside the blocks. A norm counts
        with what it feeds: the first of a block with attention, the second with the MLP, the final
        one with the head; one behind attention or MLP counts with it. In U-Nets and DiTs ``attn``
        are the projections of attention, and ``mlp`` is all else of a block.
    """
    # Names are all that is known, and they are alike in most architectures. The order of the
    # questions matters. A number behind `layers`, `h` or `blocks` makes it a block. Of a block,
    # what has no word of the MLP is attention's: so norms and biases follow what they stand with. A
    # router is often called a gate of the MLP, and an expert an MLP, so these two are asked for
    # within the MLP. Outside the blocks a head may be called `embed_out`; the head is asked for
    # first, and what is neither is the final norm, which feeds the head.
    if block := _BLOCK.search(tensor_name):
        index = int(block[1])
        rest = block[2]
        if _PICTURE_BLOCK.match(rest):
            return "block", index, "attn" if _PICTURE_ATTENTION.search(rest) else "mlp"
        if not (_MLP if post_norms else _MLP_WITH_NORM).search(rest):
            return "block", index, "attn"
        if _ROUTER.search(rest):
            return "block", index, "router"
        return "block", index, "experts" if _EXPERTS.search(rest) else "mlp"
    if _EMBEDDING.search(tensor_name) and not _HEAD.search(tensor_name):
        return "embed", None, None
    return "head", None, None


def renumbered(tensor_name: str, block: int) -> str:
    """The name of the same tensor of another block."""
    match = _BLOCK.search(tensor_name)
    if match is None:
        return tensor_name
    return f"{tensor_name[: match.start(1)]}{block}{tensor_name[match.end(1) :]}"


def has_post_norms(names: Iterable[str]) -> bool:
    """Tell whether ``post_attention_layernorm`` is behind attention, as in Gemma 3, OLMo 2 and
    EXAONE 4, by a model's names."""
    return any(map(_OTHER_NORMS.search, names))


@dataclass(frozen=True)
class GroupKey:
    """A parsed key: ``embed``, ``blocks.0``, ``blocks.0-3``, ``blocks.4.attn``, ``head``,
    ``default`` or a name pattern."""

    kind: Literal["embed", "block", "head", "default", "pattern"]
    first: int = 0
    last: int = 0
    half: Half | None = None
    pattern: str = ""

    def covers(self, tensor_name: str, post_norms: bool = False) -> bool:
        """Tell whether a tensor belongs to the group or has a name of the pattern; ``default``
        covers nothing by itself."""
        if self.kind == "pattern":
            return fnmatchcase(tensor_name, self.pattern)
        kind, block, half = classify(tensor_name, post_norms)
        if kind != self.kind:
            return False
        return block is None or (self.first <= block <= self.last and self.has_half(half))

    def has_half(self, half: str | None) -> bool:
        """Tell whether a half of a block belongs to the group; routers and experts are parts of the
        MLP."""
        return self.half in (None, half) or (self.half == "mlp" and half in _SPARSE)


@lru_cache(maxsize=4096)
def parse_key(key: str) -> GroupKey:
    """Read the key of a value; raises `RecipeError` if it is neither a layer group nor a name
    pattern."""
    if isinstance(key, str) and ("*" in key or _NAME.fullmatch(key)):
        # of the signs of `fnmatch` only the star is one here
        return GroupKey("pattern", pattern=key.replace("[", "[[]").replace("?", "[?]"))
    match = _KEY.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        raise RecipeError(
            f"{key!r} is not a layer group; write embed, head, default, blocks.3, "
            "blocks.0-7, blocks.3.attn or blocks.0-7.mlp "
            "(of mixtures also blocks.0-7.router and .experts), "
            "or the name of a tensor, or a pattern of names with *, such as '*down_proj*'"
        )
    if match[1]:
        return GroupKey(match[1])  # type: ignore[arg-type]
    first = int(match[2])
    last = int(match[3] or match[2])
    if last < first:
        raise RecipeError(
            f"{key!r}: the first block of a layer group comes first; write blocks.{last}-{first}"
        )
    return GroupKey("block", first, last, match[4])  # type: ignore[arg-type]


@lru_cache(maxsize=262144)
def select_key(keys: tuple[str, ...], tensor_name: str, post_norms: bool = False) -> str:
    """The key that counts for a tensor: its name, else the first pattern it follows, else its
    group, else ``default``."""
    if tensor_name in keys:
        return tensor_name
    matching = [key for key in keys if parse_key(key).covers(tensor_name, post_norms)]
    # From the narrowest to the widest: the whole name, a pattern (the first that is written),
    # routers or experts, another group, then the default. Two groups that name the same tensor are
    # a mistake, not a matter of order.
    if patterns := [key for key in matching if parse_key(key).kind == "pattern"]:
        return patterns[0]
    if len(matching) > 1:  # routers and experts are more than the MLP that they are in
        matching = [key for key in matching if parse_key(key).half in _SPARSE] or matching
    if len(matching) > 1:
        raise RecipeError(
            f"layer groups {matching[0]} and {matching[1]} both name {tensor_name}; keep one "
            "of them"
        )
    if matching:
        return matching[0]
    if "default" in keys:
        return "default"
    raise RecipeError(
        f"no layer group names {tensor_name} (found {', '.join(keys)}); add its group, or default"
    )


@dataclass(frozen=True)
class Ramp:
    """A gradient over the blocks from `first` to `last`: numbers at equal distances, and straight
    lines between them.

    The first number is that of the first block and the last that of the last; a single block has
    the last number. Embeddings, final norm and head are outside the blocks, and have the first
    number: as in mergekit, so that its files mean the same.
    """

    numbers: tuple[float, ...]
    first: int
    last: int

    def at(self, block: int | None) -> float:
        """The number of a block; None: outside the blocks."""
        if block is None:
            return self.numbers[0]
        # As mergekit's gradients: n numbers stand at 0, 1 / (n - 1), ..., 1 of the way from the
        # first block to the last, with straight lines between them.
        place = 1.0 if self.last == self.first else (block - self.first) / (self.last - self.first)
        scaled = min(max(place, 0.0), 1.0) * (len(self.numbers) - 1)
        left = int(scaled)
        right = min(left + 1, len(self.numbers) - 1)
        share = scaled - left
        return (1 - share) * self.numbers[left] + share * self.numbers[right]


@dataclass(frozen=True)
class Rows:
    """Numbers of n equal runs of a tensor's rows, one each: row r of R has number floor(r n /
    R)."""

    numbers: tuple[float, ...]

    def at(self, row: int, rows: int) -> float:
        """The number of a row, of so many."""
        return self.numbers[row * len(self.numbers) // rows]


def is_tensor(key: str) -> bool:
    """Tell whether a key is the whole name of a tensor."""
    return parse_key(key).kind == "pattern" and "*" not in key


class ByGroup(dict[str, Any]):
    """Values by their keys, for a model of which it is known what ``post_attention_layernorm`` is,
    see `has_post_norms`."""

    post_norms = False

    def key(self, tensor_name: str) -> str:
        """The key that counts for a tensor."""
        return select_key(tuple(self), tensor_name, self.post_norms)


def expand(value: Any, first: int, last: int, names: Iterable[str] = ()) -> Any:
    """A parameter's value with a `Ramp` in place of each list of numbers, or `Rows` under the name
    of a tensor.

    Args:
        value: A number, a list of numbers, or a mapping from keys to numbers or lists of numbers;
            anything else stays.
        first, last: The blocks that a list runs over, unless it stands under a group of blocks: it
            then runs over those.
        names: The names of the model's tensors.
    """
    if isinstance(value, Mapping):
        groups = {key: parse_key(key) for key in value}
        spans = {
            key: (group.first, group.last) if group.kind == "block" else (first, last)
            for key, group in groups.items()
        }
        expanded = ByGroup(
            (
                key,
                Rows(tuple(item))
                if isinstance(item, list) and is_tensor(key)
                else expand(item, *spans[key]),
            )
            for key, item in value.items()
        )
        expanded.post_norms = has_post_norms(names)
        return expanded
    if isinstance(value, list):
        return Ramp(tuple(value), first, last)
    return value


def resolve(value: Any, tensor_name: str, block: int | None = -1) -> Any:
    """Resolve a value for one tensor.

    Args:
        value: A value for the whole model, a `Ramp`, or a mapping from keys to numbers, ramps or
            `Rows` (see `expand`).
        tensor_name: The raw name of the tensor.
        block: The place on the ramps, None outside the blocks; -1: the number in the name.

    Raises:
        RecipeError: No key names the tensor and there is no ``default``, or two layer groups do.
    """
    if isinstance(value, Mapping):
        value = value[
            value.key(tensor_name)
            if isinstance(value, ByGroup)
            else select_key(tuple(value), tensor_name)
        ]
    if isinstance(value, Ramp):
        return value.at(classify(tensor_name)[1] if block == -1 else block)
    return value


def check_keys(
    value: Mapping[str, Any], layer_count: int, names: Sequence[str] | None = None
) -> None:
    """Raise `RecipeError` unless every tensor has exactly one value, and every key names a tensor.

    Args:
        value: The values by their keys.
        layer_count: Number of blocks of the model.
        names: The raw names of its tensors. Where they are not known, patterns go unchecked and a
            stand-in for each group is asked about.
    """
    for key in value:
        group = parse_key(key)
        if group.kind == "block" and group.last >= layer_count:
            raise RecipeError(
                f"layer group {key}: there are {layer_count} blocks, 0 to {layer_count - 1}"
            )
        if group.half in _SPARSE and names is not None and not any(map(group.covers, names)):
            raise RecipeError(
                f"layer group {key}: no tensor that is merged belongs to it; routers are "
                "merged where the recipe says "
                "router: merge, and experts where the model has some"
            )
        if (
            group.kind == "pattern"
            and names is not None
            and not any(map(group.covers, [*names, TIED_HEAD]))
        ):
            raise RecipeError(
                f"the pattern {key!r} names no tensor; the names are like {', '.join(names[:2])}"
            )
    post_norms = has_post_norms(names or ())
    by_name = any(
        parse_key(key).kind == "pattern" or parse_key(key).half in _SPARSE for key in value
    )
    if names is not None or not by_name:
        for name in names if names is not None else one_of_each(layer_count):
            select_key(tuple(value), name, post_norms)


def router_names(names: Iterable[str]) -> list[str]:
    """The names of a mixture's routers, by the names of all its tensors; none where there are no
    experts."""
    halves = {name: classify(name)[2] for name in names}
    if "experts" not in halves.values():
        return []
    return [name for name, half in halves.items() if half == "router"]


def without_unmatched(value: Any, names: Sequence[str]) -> Any:
    """The value without the patterns that name no tensor; what is no mapping stays as it is."""
    if not isinstance(value, Mapping):
        return value
    groups = {key: parse_key(key) for key in value}
    known = [*names, TIED_HEAD]
    return {
        key: value[key]
        for key, group in groups.items()
        if group.kind != "pattern" or any(map(group.covers, known))
    }


def one_of_each(layer_count: int) -> list[str]:
    """A tensor name for every place that may have a value of its own."""
    halves = [
        f"layers.{block}.{half}.weight"
        for block in range(layer_count)
        for half in ("self_attn", "mlp")
    ]
    return ["embed_tokens.weight", *halves, "lm_head.weight"]


def group_keys(groups: int | Literal["block", "half", "model"], layer_count: int) -> list[str]:
    """Cut a model into layer groups, and return their keys in the order of the layers.

    Args:
        groups: ``block``: each block is a group, next to ``embed`` and ``head``; ``half``: so are
            the attention and the MLP of each; a number: the blocks are divided into so many groups,
            of which the last may be smaller; ``model``: the whole model is one group, ``default``,
            which is what arXiv:2403.13187 reports (finer groups gained nothing there).
        layer_count: Number of blocks.
    """
    if groups == "model":
        return ["default"]
    size = math.ceil(layer_count / groups) if isinstance(groups, int) else 1
    keys = ["embed"]
    for first in range(0, layer_count, max(size, 1)):
        last = min(first + size, layer_count) - 1
        blocks = f"blocks.{first}" if first == last else f"blocks.{first}-{last}"
        keys += [f"{blocks}.attn", f"{blocks}.mlp"] if groups == "half" else [blocks]
    return [*keys, "head"]
