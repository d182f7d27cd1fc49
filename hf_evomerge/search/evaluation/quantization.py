"""The base of a search over adapters in 8 or 4 bits, packed by bitsandbytes while it is loaded
(QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

import logging
from typing import Any, Literal

Quantization = Literal["8bit", "4bit"]
BITS = {"8bit": 8.0, "4bit": 4.13}  # of a weight, with its share of the scales


def packed(kind: Quantization, dtype: Any, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that pack the linear layers: LLM.int8(), or NF4 with scales
    quantised as well."""
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # warns of a cast at every call of every layer
    four = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }
    return {
        "quantization_config": BitsAndBytesConfig(**{f"load_in_{kind}": True}, **four),
        "device_map": {"": device},
    }


def keep_differentiable(model: Any) -> None:
    """Keep the layout of weights whose products have a gradient: on some processors a first score
    would change it for good."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
