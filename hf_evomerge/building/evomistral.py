"""The layout of the paper's EvoLLM-JP-v1-10B, as a checkpoint of this package's own class.

It stores Mistral's layers once, and the path among the weights: ``model.input_layers``, which stored layer each hop runs, and
``model.input_scales``, what the MLP output of the hop before is multiplied by. Its own code does not run on transformers 5.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.headers import StoredTensor
from ..checkpoints.source import Source
from ..checkpoints.writer import check_target, write_checkpoint
from ..errors import SourceError, one_line
from ..recipes.layer_path import MAX_HOPS
from ..recipes.recipe import FlowPart
from .routed import Routed

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LAYERS, SCALES = "model.input_layers", "model.input_scales"
_THEIRS = {"architectures", "auto_map", "model_type", "num_hops", "transformers_version", "use_cache"}


class EvoMistral(Source):
    """The stored layers of such a checkpoint, as a Mistral without a path."""

    @cached_property
    def config(self) -> PretrainedConfig:
        """The config of a Mistral of the stored layers."""
        from transformers import MistralConfig

        fields = self.read_json("config.json")
        if fields.get("model_type") != "evomistral":
            raise SourceError(
                f"{self}: model_type is {one_line(fields.get('model_type'))!r}, not 'evomistral'; nothing to import"
            )
        self.check_fields(fields)
        kept = {key: value for key, value in fields.items() if key not in _THEIRS}
        try:
            return MistralConfig.from_dict({**kept, "architectures": ["MistralForCausalLM"]})
        except Exception as cause:  # anything, as for other configs
            raise SourceError(f"{self}: config.json cannot be read: {one_line(cause)}") from cause

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Those of a Mistral."""
        return {name: info for name, info in self.stored.items() if name not in (LAYERS, SCALES)}

    def flow(self) -> FlowPart:
        """The path, from the weights; the file that holds it is fetched where it has to be. Raises `SourceError`."""
        hops = self.read_json("config.json").get("num_hops")
        layers, scales = self._numbers(LAYERS, ("I64", "I32"), hops), self._numbers(SCALES, ("F32", "F16", "BF16"), hops)
        count = self.layer_count
        if wrong := [layer for layer in layers if not 0 <= layer < count]:
            raise SourceError(f"{self}: {LAYERS} names layer {wrong[0]}; {count} layers are stored, numbered from 0")
        if wrong := [scale for scale in scales if not math.isfinite(scale)]:
            raise SourceError(f"{self}: {SCALES} holds {wrong[0]}, not finite numbers; download it again")
        if len(layers) != len(scales):
            raise SourceError(f"{self}: {LAYERS} has {len(layers)} numbers, {SCALES} {len(scales)}; download it again")
        return FlowPart(path=[f"0:{layer}" for layer in layers], scales=scales, scale_target="mlp_delta")

    def _numbers(self, name: str, dtypes: tuple[str, ...], hops: Any) -> list[Any]:
        """One of the two rows of numbers."""
        stored = self.stored.get(name)
        if stored is None:
            raise SourceError(f"{self}: no tensor called {name}, which holds the path; download it again")
        if stored.dtype not in dtypes or len(stored.shape) != 1 or not 0 < stored.numel <= MAX_HOPS:
            raise SourceError(f"{self}: {name} is {stored}; it holds one number per hop, of at most {MAX_HOPS} hops")
        if hops is not None and stored.numel != hops:
            raise SourceError(f"{self}: {name} has {stored.numel} numbers, but num_hops in config.json is {one_line(hops)}")
        values: list[Any] = self.read_stored(stored, name).tolist()
        return values


def import_evomistral(
    model: str | Path, out: str | Path, *, max_shard_size: str | int = "4GB", overwrite: bool = False, progress: bool = True
) -> Path:
    """Write a checkpoint in the layout of the paper's EvoLLM-JP-v1-10B as an `EvoMergedForCausalLM`, tensor by tensor.

    It then loads without anybody's code, and `fold` makes a plain Mistral of it. The numbers are the checkpoint's own, in its
    dtype, and the scales act as in its code, on the MLP output of the hop before (``mlp_delta``).

    Args:
        model: The checkpoint's folder, or its repository on the Hub.
        out: The folder to make. It appears when the model is complete.
        max_shard_size: The largest file of weights, such as ``"4GB"``.
        overwrite: Whether to replace a model that is there.
        progress: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        SourceError: The checkpoint has another layout, is not whole, or cannot be read.
        EvoMergeError: An argument is wrong.

    Example:
        >>> import_evomistral("SakanaAI/EvoLLM-JP-v1-10B", "evollm-10b")  # doctest: +SKIP
        PosixPath('evollm-10b')
    """
    check_target(Path(out), overwrite=overwrite)
    source = EvoMistral.open(str(model))
    routed = Routed([source], source.flow())
    return write_checkpoint(routed, out, max_shard_size=max_shard_size, overwrite=overwrite, progress=progress)
