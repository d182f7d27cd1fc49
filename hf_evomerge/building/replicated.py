"""A path as an adapter: peft repeats, leaves out and reorders the layers of one model when it loads
it.

``layer_replication`` lists ranges of layers, as in ``[[0, 4], [2, 8]]``, and the base stays as it
is. peft wants a LoRA matrix as well: one module has a product of rank 1 that is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Origin, Parent
from ..checkpoints.replication import KEY, check_kinds, in_first_place, ranges_of
from ..errors import SourceError
from .adapter import AdapterCheckpoint, Factors, Module
from .extracted import linear_layers
from .routed import Routed

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class PathAdapter(AdapterCheckpoint):
    """The path through one model, as an adapter of it.

    Args:
        routed: The path as a checkpoint.

    Raises:
        SourceError: peft cannot take it; the message is the reason.
    """

    def __init__(self, routed: Routed) -> None:
        self.routed = routed
        self.source = _only_source(routed)
        self.ref = routed.ref
        self.base = self.source.ref
        self.tokenizer_source = routed.tokenizer_source
        self.chat_template = routed.chat_template
        self.settings = routed.settings
        layers = [hop.terms[0].layer for hop in routed.flow.to_path().hops]
        check_kinds(self.source.text_config, layers)
        self.replication = ranges_of(layers)
        self.modules = dict([_smallest_map(self.source, layers[0])])
        self.layers = []
        self.measured = []
        super().__init__()

    def factors(self, name: str) -> Factors:
        """Two matrices of zeros."""
        import torch

        rows, columns = self.modules[name].shape
        return torch.zeros(rows, 1), torch.zeros(1, columns)

    def adapter_config(self) -> dict[str, Any]:
        """Fields of ``adapter_config.json``, with the ranges of layers."""
        return {
            **super().adapter_config(),
            "target_modules": [module.name for module in self.modules.values()],
            KEY: self.replication,
        }

    @property
    def config(self) -> PretrainedConfig:
        """The base's config."""
        return self.source.config

    @property
    def sources(self) -> list[Parent]:
        """The model."""
        return [self.source]

    def origin(self, name: str) -> Origin:
        """Zeros, beside one weight of the base."""
        return Origin("zero", ((self.source, next(iter(self.modules))),))

    def download(self) -> None:
        """Fetch nothing: no weight of the base is needed."""

    @property
    def warnings(self) -> list[str]:
        """Warnings about the path."""
        return self.routed.warnings

    def __str__(self) -> str:
        return f"{self.routed}, as an adapter"


def _only_source(routed: Routed) -> Parent:
    """The one model of a path without scales; raises `SourceError` where there is more."""
    path = routed.flow.to_path()
    used = {source for source, _ in path.unique_layers} | {routed.flow.embedding_source}
    if not path.is_serial or any(scale != 1 for scale in path.scales):
        raise SourceError("the path has layers side by side, or scales")
    if len(used) > 1:
        raise SourceError("the path runs through several models")
    source = routed.checkpoints[used.pop()]
    if not isinstance(source, Parent) or source.part is not None:
        raise SourceError("the path runs through a merge, or a part of a model")
    if source.adapter is not None:
        raise SourceError(f"{source} has an adapter already")
    if source.is_quantized:
        raise SourceError(f"{source} has quantised weights")
    if routed.config.dtype != source.config.dtype:
        raise SourceError(f"dtype: an adapter leaves the base's, {source.config.dtype}, as it is")
    return source


def _smallest_map(source: Parent, layer: int) -> tuple[str, Module]:
    """The smallest linear map of the path's first layer, by raw name; raises `SourceError` where
    peft finds no layers."""
    found = {}
    for raw, (module, transposed) in linear_layers(source).items():
        name = in_first_place(module, layer)
        if name is not None and not transposed:
            found[raw] = Module(name, source.tensors[raw].shape, 1)
    if not found:
        raise SourceError(f"peft finds no layers in a {source.config.model_type}")
    raw = min(found, key=lambda raw: source.tensors[raw].numel)
    return raw, found[raw]
