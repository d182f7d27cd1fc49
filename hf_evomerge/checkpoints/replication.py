"""Layers of a model in another order, as peft's ``layer_replication`` says it: what peft makes of a
config, and what it gets wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, told
from ..recipes.layer_path import MAX_HOPS
from .headers import StoredTensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KEY = "layer_replication"
_NUMBER = re.compile(r"((?:model\.)*layers\.)(\d{1,9})\.")  # where peft looks for layers


def ranges_of(layers: Sequence[int]) -> list[list[int]]:
    """Write layers as ranges, each from its first to behind its last."""
    breaks = [place for place, (a, b) in enumerate(pairwise(layers), 1) if b != a + 1]
    return [
        [layers[start], layers[end - 1] + 1] for start, end in pairwise([0, *breaks, len(layers)])
    ]


def layers_of(ranges: Any, owner: str) -> list[int]:
    """Read ranges of layers; raises `SourceError` where they are no such ranges."""
    layers: list[int] = []
    try:
        for first, last in ranges:
            if type(first) is not int or not 0 <= first < last <= first + MAX_HOPS:
                raise ValueError
            layers += range(first, last)
        if not 0 < len(layers) <= MAX_HOPS:
            raise ValueError
    except (TypeError, ValueError) as cause:
        raise SourceError(
            f"{owner}: {KEY} is {ranges!r:.60}, not ranges of layers such as [[0, 4], [2, 8]]"
        ) from cause
    return layers


def in_first_place(module: str, layer: int) -> str | None:
    """Name of a layer's module once that layer is the first; None where peft finds no layers."""
    match = _NUMBER.match(module)
    if match is None or int(match[2]) != layer:
        return None
    return f"{match[1]}0.{module[match.end() :]}"


def check_kinds(config: PretrainedConfig, layers: Sequence[int]) -> None:
    """Raise `SourceError` where peft would run layers as another kind than they are.

    Args:
        config: Config of the language model.
        layers: The layers, in the order in which they run.
    """
    # peft changes the list of layers and their number, and leaves `layer_types` as it is. So hop k
    # gets mask and cache of the base's layer k: it must be one of its kind, and there must be one.
    kinds = list(getattr(config, "layer_types", None) or ())
    if kinds and [kinds[layer] for layer in layers] != kinds[: len(layers)]:
        raise SourceError(
            f"a {config.model_type} lists kinds of layers (layer_types), and peft runs each layer "
            "as the kind of the base's in its place, which these are not"
        )


def rearranged_tensors(
    tensors: Mapping[str, StoredTensor], layers: Sequence[int]
) -> dict[str, StoredTensor]:
    """Rename the tensors of layers, so that the layers come in another order."""
    rest = {}
    blocks: dict[int, list[tuple[str, str, str]]] = {}
    for name, info in tensors.items():
        match = _NUMBER.match(name)
        if match is None:
            rest[name] = info
            continue
        blocks.setdefault(int(match[2]), []).append((name, match[1], name[match.end() :]))
    for place, layer in enumerate(layers):
        for name, before, behind in blocks.get(layer, ()):
            rest[f"{before}{place}.{behind}"] = replace(tensors[name], name=name)
    return rest


def rearrange(config: PretrainedConfig, layers: Sequence[int], owner: str) -> None:
    """Change a config, so that it describes the model with its layers in another order.

    Raises:
        SourceError: The base has no such layer, or it is not known how the model would run.
    """
    text = config.get_text_config()
    count = text.num_hidden_layers
    if max(layers) >= count:
        raise SourceError(
            f"{owner}: {KEY} names layer {max(layers)}, of which the base has {count}, from 0"
        )
    with told(SourceError, SourceError, f"{owner}: {KEY}: "):
        check_kinds(text, layers)
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == count:
            kept = value[: len(layers)]
            if [value[layer] for layer in layers] != kept:
                raise SourceError(
                    f"{owner}: {KEY} moves layers, for each of which {name} has an entry"
                )
            setattr(text, name, kept)
    text.num_hidden_layers = len(layers)
