"""Modules that sentence-transformers runs after an encoder, such as pooling and a Dense layer, and
its prompts. No torch.

The weights of a module lie in a folder of its own. Its tensors are merged as all others, as
``2_Dense/linear.weight``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SourceError, one_line, told
from .headers import StoredTensor, read_header, read_mapping
from .inside import check_folder, check_size, held_instead

_FOLDER = re.compile(r"[0-9]_\w+")
_TRAINED = ("Dense", "LayerNorm")  # kinds that are nothing without weights
_POOLING = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "weightedmean_tokens": "weightedmean",
}
_MODES = (
    "cls_token",
    "max_tokens",
    "mean_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)


@dataclass(frozen=True)
class SentenceModule:
    """Module after the encoder.

    Attributes:
        kind: Name of its class: ``Pooling``, ``Dense``, ``LayerNorm``, ``Normalize``, ...
        folder: Name of its folder, which need not be there.
        config: Its config.
        weights: Its file of weights; None where it has none.
    """

    kind: str
    folder: str
    config: Mapping[str, Any]
    weights: Path | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that change its result, by today's names, with the defaults of
        sentence-transformers filled in."""
        told = self.config.get
        if self.kind == "Pooling":
            modes = told(
                "pooling_mode",
                [_POOLING.get(name, name) for name in _MODES if told(f"pooling_mode_{name}")]
                or "mean",
            )
            modes = [modes] if isinstance(modes, str) else modes
            return {
                "pooling": "+".join(map(str, modes)),
                "include_prompt": told("include_prompt", True),
            }
        if self.kind != "Dense":
            return {}
        activation = str(told("activation_function", "torch.nn.Tanh"))
        given = told("module_input_name", "sentence_embedding")
        name = activation.rpartition(".")[2] if activation.startswith("torch.") else activation
        return {
            "activation_function": name,
            "module_input_name": given,
            "use_residual": told("use_residual", False),
        }

    def header(self, owner: str) -> dict[str, StoredTensor]:
        """Read its tensors by their names in its file; raises `SourceError`."""
        return {} if self.weights is None else read_header(self.weights, f"{owner}: {self.folder}")


@dataclass(frozen=True)
class Sentence:
    """Steps by which sentence-transformers makes a text's vector with a model folder.

    Attributes:
        folder: The folder that has the files.
        encoder: Kind of the encoder, ``Transformer`` mostly; empty for a plain transformers model.
        modules: The modules after it, in their order.
        settings: What its files say of prompts, similarity and length.
    """

    folder: Path
    encoder: str = ""
    modules: Sequence[SentenceModule] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, owner: str) -> Sentence:
        """Read what lies in a model folder; raises `SourceError` where a module lacks weights, or
        holds them as a pickle."""
        settings: dict[str, Any] = {}
        for name in ("sentence_bert_config.json", "config_sentence_transformers.json"):
            if (folder / name).is_file():
                settings |= read_mapping(folder / name, f"{owner}: {name}")
        if not isinstance(settings.get("prompts") or {}, dict):
            raise SourceError(
                f"{owner}: config_sentence_transformers.json: prompts is no mapping of names "
                "to texts"
            )
        if (longest := settings.get("max_seq_length")) is not None and (
            type(longest) is not int or longest < 1
        ):
            raise SourceError(
                f"{owner}: sentence_bert_config.json: max_seq_length is no whole number above 0"
            )
        named = _read_modules(folder / "modules.json", f"{owner}: modules.json")
        modules = [_module(folder, kind, path, owner) for kind, path in named[1:]]
        return cls(folder, named[0][0] if named else "", modules, settings)

    @property
    def has_weights(self) -> bool:
        """Tell whether a module has tensors."""
        return any(module.weights is not None for module in self.modules)

    @property
    def prompts(self) -> tuple[str, str]:
        """Prompts before queries, and before passages."""
        prompts = self.settings.get("prompts") or {}
        return str(prompts.get("query") or ""), str(prompts.get("document") or "")


def _read_modules(file: Path, where: str) -> list[tuple[str, str]]:
    """The kind and the folder of every module, the encoder first; none where there is no such
    file."""
    if not file.is_file():
        return []
    damages = (OSError, ValueError, TypeError, KeyError, RecursionError)
    with told(SourceError, damages, f"{where} cannot be read: ", "; download it again"):
        check_size(file)
        entries = json.loads(file.read_text(encoding="utf-8"))
        return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]


def _module(folder: Path, kind: str, path: str, owner: str) -> SentenceModule:
    inner = folder / path
    if not _FOLDER.fullmatch(path):
        raise SourceError(
            f"{owner}: modules.json: {kind} lies in {one_line(path)!r}, which is no folder "
            "such as 2_Dense"
        )
    if inner.is_dir():
        check_folder(inner, folder)
    weights = inner / "model.safetensors"
    config = inner / "config.json"
    held = held_instead(inner)
    if not weights.is_file() and (kind in _TRAINED or "pickle" in held):
        raise SourceError(
            f"{owner}: {path} has no model.safetensors ({held}); save it again with "
            "SentenceTransformer.save_pretrained"
        )
    fields = read_mapping(config, f"{owner}: {path}/config.json") if config.is_file() else {}
    return SentenceModule(kind, path, fields, weights if weights.is_file() else None)
