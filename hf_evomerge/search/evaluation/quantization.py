"""The base of a search over adapters in 8 or 4 bits, packed by bitsandbytes while it is loaded (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from ...errors import SearchError
from ...recipes.layer_groups import classify

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...checkpoints.checkpoint import Checkpoint

Quantization = Literal["8bit", "4bit"]
_BITS = {"8bit": 8.0, "4bit": 4.13}  # of a weight, with its share of the scales


def check_installed() -> None:
    """Raise `SearchError` where bitsandbytes, or accelerate, is not installed."""
    try:
        import accelerate  # noqa: F401
        import bitsandbytes  # noqa: F401
    except ImportError as cause:
        raise SearchError(f"quantization: needs {cause.name}: pip install 'hf-evomerge[quantization]'") from cause


def packed(kind: Quantization, dtype: Any, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that pack the linear layers: LLM.int8(), or NF4 with scales quantised as well."""
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of a cast at every call of every layer
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(**{f"load_in_{kind}": True}, **four), "device_map": {"": device}}


def keep_differentiable(model: PreTrainedModel) -> None:
    """Keep the layout of weights whose products have a gradient: on some processors a first score would change it for good."""
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def packed_size(base: Checkpoint, kind: Quantization, itemsize: int) -> int:
    """Bytes of a model whose matrices inside the blocks are packed; an element of the rest has `itemsize` bytes."""
    size = 0.0
    for name, info in base.tensors.items():
        inside = len(info.shape) == 2 and classify(name)[1] is not None
        size += math.prod(info.shape) * (_BITS[kind] / 8 if inside else itemsize) if info.is_float else 0
    return int(size)
