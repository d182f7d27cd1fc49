"""Description of a checkpoint, from its config and headers alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..recipes.layer_groups import classify
from ..recipes.layer_path import SCALED
from .checkpoint import Parent
from .headers import TensorInfo, read_mapping
from .open import open_source
from .quantized import quantization_name


@dataclass(frozen=True)
class Size:
    """Size of a model.

    Attributes:
        parameters: Number of floating-point elements.
        bytes: Size of all tensors.
        dtypes: Number of elements of each dtype, by its safetensors name.
    """

    parameters: int
    bytes: int
    dtypes: dict[str, int]


@dataclass(frozen=True)
class Inspection:
    """Description of a checkpoint.

    Attributes:
        model: The folder or repository; of an adapter its base, of which all else is said.
        architecture, model_type: The class in its config, and the type of the language model (of a
            merged model: its sources').
        layers: Number of blocks that run; of a merged model the number of cache slots, one per term
            of the path.
        hidden_size, vocab_size: As in the config; None where it does not say.
        tied_head: Whether the head is the embedding matrix.
        quantization: The method, where the weights are quantised; their parameters are then packed,
            and not all counted.
        stored: Content of the files; each layer once.
        effective: Size as it runs: a layer of a merged model counts as often as the path runs it.
        chat_template: Whether there is one in the folder or repository.
        merged: Facts on a path: ``path``, ``scales``, ``scale_target``, ``embedding_source`` and
            ``sources``, as in its config, and ``distinct_layers``, of which each is stored once.
        parts: Number of tensors of each part of the model, where it has several, such as ``text``
            and ``vision``.
        adapter: Facts on an adapter: ``name``, ``ranks``, ``alphas`` (empty where they are among
            its tensors), last names of the ``modules`` that it changes, number of ``weights``, and
            ``bytes``.
    """

    model: str
    architecture: str
    model_type: str
    layers: int | None
    hidden_size: int | None
    vocab_size: int | None
    tied_head: bool
    quantization: str | None
    stored: Size
    effective: Size
    chat_template: bool
    merged: dict[str, Any] | None
    parts: dict[str, int]
    adapter: dict[str, Any] | None = None

    def to_json(self) -> str:
        """Format as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        """Format as text."""
        rows = [
            ("model", self.model) if self.adapter is None else ("base", self.model),
            ("architecture", f"{self.architecture} ({self.model_type})"),
        ]
        is_language_model = self.layers is not None or self.vocab_size is not None
        if is_language_model:
            head = "tied to the embeddings" if self.tied_head else "of its own"
            rows += [
                ("layers", str(self.layers)),
                ("hidden size", str(self.hidden_size)),
                ("vocabulary", f"{self.vocab_size}, head {head}"),
            ]
        rows.append(("stored", _size_text(self.stored)))
        if self.quantization is not None:
            rows.append(
                ("quantised", f"{self.quantization}; packed weights are not counted as parameters")
            )
        if self.parts:
            counts = [f"{part}: {count} tensors" for part, count in self.parts.items()]
            rows.append(("parts", ", ".join(counts)))
        if self.effective != self.stored:
            rows.append(("effective", _size_text(self.effective)))
        if is_language_model:
            rows.append(("chat template", "there" if self.chat_template else "none"))
        if (lora := self.adapter) is not None:
            numbers = [
                f"{one} {'/'.join(map(str, lora[f'{one}s']))}"
                for one in ("rank", "alpha")
                if lora[f"{one}s"]
            ]
            changed = f"{lora['weights']} weights ({', '.join(lora['modules'])})"
            rows.insert(
                0,
                (
                    "adapter",
                    ", ".join([lora["name"], *numbers, changed, f"{lora['bytes']:,} bytes"]),
                ),
            )
        lines = [f"{name:13} {value}" for name, value in rows]
        if (merged := self.merged) is not None:
            path = merged["path"]
            scales = merged["scales"]
            target = merged["scale_target"]
            lines.append(
                f"{'path':13} {len(path)} hops over {merged['distinct_layers']} distinct layers"
            )
            scaled = f"scales multiply {SCALED.get(target, target)}"
            lines.append(
                f"{'':13} {scaled}; embeddings and head of source {merged['embedding_source']}"
            )
            for i, source in enumerate(merged["sources"]):
                revision = f"@{source['revision']}" if source.get("revision") else ""
                lines.append(
                    f"source {i:<6} {source.get('model', 'unnamed')}{revision}, "
                    f"{source['layers']} layers"
                )
            for number, (hop, scale) in enumerate(zip(path, scales, strict=True), 1):
                lines.append(f"  hop {number:3}  {hop:24} scale {scale:.4f}")
        return "\n".join(lines)


def inspect_model(model: str | Path, *, trust_remote_code: bool = False) -> Inspection:
    """Say what a checkpoint is, from its config and the headers of its files; no weight is read.

    Args:
        model: A folder, or the id of a repository on the Hub.
        trust_remote_code: Whether Python files that come with the model may be run to read its
            config.

    Raises:
        SourceError: There is no such checkpoint, or its config or a header cannot be read.

    Example:
        >>> report = inspect_model("my-search/model")  # print it to read it
        >>> # layers that run twice are stored once
        >>> report.stored.parameters < report.effective.parameters
        True
    """
    source = open_source(model, trust_remote_code=trust_remote_code)
    config = source.config
    text = source.text_config
    merged = None
    runs = Counter[int]()
    if config.model_type == "evo_merged":
        runs = Counter(config.owners)
        keys = ("path", "scales", "scale_target", "embedding_source", "sources")
        merged = {**{key: getattr(config, key) for key in keys}, "distinct_layers": len(runs)}
    tensors = source.tensors
    architecture = (config.architectures or ["unknown"])[0]
    return Inspection(
        model=str(source.ref.parts[0])
        if source.repository is None
        else f"{source.repository.name}@{source.repository.commit}",
        architecture=architecture,
        model_type=text.model_type,
        layers=getattr(text, "num_hidden_layers", None),
        hidden_size=getattr(text, "hidden_size", None),
        vocab_size=getattr(text, "vocab_size", None),
        # a head of labels is a matrix of its own
        tied_head=not re.search("Classification|QuestionAnswering|MultipleChoice", architecture)
        and (source.is_tied or bool(merged and getattr(text, "tie_word_embeddings", False))),
        quantization=quantization_name(source.quantization) or None,
        stored=_size((info, 1) for name, info in source.stored.items() if name not in source.tied),
        effective=_size((info, _times(name, runs)) for name, info in tensors.items()),
        chat_template=_has_chat_template(source.beside),
        merged=merged,
        parts=_parts(source) if merged is None else {},
        adapter=_adapter(source),
    )


def _adapter(source: Parent) -> dict[str, Any] | None:
    """Describe the adapter of a source. Raises `SourceError` where it does not fit the base."""
    if (adapter := source.adapter) is None:
        return None
    alphas = {
        *(adapter.config.get("alpha_pattern") or {}).values(),
        adapter.config.get("lora_alpha"),
    } - {None}
    return {
        "name": adapter.label,
        "ranks": sorted(
            {adapter.tensors[change.a].shape[0] for change in source.changes.values() if change.a}
        ),
        "alphas": sorted(alphas),
        "modules": sorted(
            {name.removesuffix(".weight").rpartition(".")[2] for name in source.changes}
        ),
        "weights": len(source.changes),
        "bytes": _size((info, 1) for info in adapter.tensors.values()).bytes,
    }


def _parts(source: Parent) -> dict[str, int]:
    """The tensors of each part of a model that has several, of those that transformers knows."""
    if not (
        source.entries
        or source.config.sub_configs
        or getattr(source.config, "is_encoder_decoder", False)
    ):
        return {}
    try:
        return source.layout.count()
    except SourceError:
        return {}


def _times(name: str, runs: Counter[int]) -> int:
    """Count how often the layer of a tensor runs; its number in the name is its first slot."""
    block = classify(name)[1]
    return max(1, runs[block]) if block is not None else 1


def _size(tensors: Iterable[tuple[TensorInfo, int]]) -> Size:
    dtypes = Counter[str]()
    size = 0
    parameters = 0
    for info, times in tensors:
        dtypes[info.dtype] += info.numel * times
        size += info.bytes * times
        parameters += info.numel * times if info.dtype.startswith(("F", "BF")) else 0
    return Size(parameters, size, dict(sorted(dtypes.items())))


def _size_text(size: Size) -> str:
    dtypes = ", ".join(f"{name} {count:,}" for name, count in size.dtypes.items())
    return f"{size.parameters:,} parameters, {size.bytes:,} bytes ({dtypes})"


def _has_chat_template(folder: Path) -> bool:
    if any(folder.glob("*chat_template*")):
        return True
    try:
        return bool(read_mapping(folder / "tokenizer_config.json", "").get("chat_template"))
    except SourceError:
        return False
