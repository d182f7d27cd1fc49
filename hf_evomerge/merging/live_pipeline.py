"""Loads a diffusion pipeline for scoring, without code of its own and without pickles, and with the
adapter in its weights."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ..checkpoints.component import Component
from ..checkpoints.headers import torch_dtype
from ..errors import SourceError, optional, told
from .live import write_adapter

if TYPE_CHECKING:
    import torch

    from ..checkpoints.checkpoint import Parent


def load_pipeline(source: Parent, dtype: torch.dtype | None = None) -> Any:
    """The pipeline, live, with the adapter in its weights.

    Args:
        source: Pipeline to load.
        dtype: Dtype of all components; each its own where None.

    Raises:
        SourceError: diffusers is not there, or cannot load it.
    """
    library = optional("diffusers", "diffusion", str(source), SourceError)
    source.download()
    own = {part: _dtype_of(folder) for part, folder in source.parts.items()}
    # anything: a class may need a library that is not installed
    with told(SourceError, Exception, f"{source}: diffusers cannot load it: "):
        pipeline: Any = library.DiffusionPipeline.from_pretrained(
            source.folder,
            dtype={part: dtype or given for part, given in own.items()},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            variant="fp16"
            if any(folder.stem.endswith(".fp16") for folder in source.parts.values())
            else None,
        )
    pipeline.set_progress_bar_config(disable=True)
    for part in dict.fromkeys(raw.partition("/")[0] for raw in source.changes):
        write_adapter(Component(source, part), getattr(pipeline, part))
    for part in source.parts:
        getattr(pipeline, part).eval().requires_grad_(False)
    return pipeline


def _dtype_of(source: Parent) -> torch.dtype:
    """The dtype that most numbers of a component have."""
    import torch

    counts = Counter[str]()
    for info in source.tensors.values():
        counts[info.dtype] += info.numel if info.is_float else 0
    return torch_dtype(counts.most_common(1)[0][0]) or torch.float32
