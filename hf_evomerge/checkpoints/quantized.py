"""Quantised weights that are dequantised while they are read, one tensor at a time: FP8 with block
scales, and MXFP4.

Knows names, shapes and arithmetic of both formats. All other quantisations are refused by the name
of what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, one_line
from .headers import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    Read = Callable[[StoredTensor, str], Tensor]

_READ = ("fp8", "mxfp4")
_KEY = "quantization_config"
_FP8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("F32", "BF16", "F16", "F8_E8M0")
_BLOCK = [128, 128]  # of settings without weight_block_size, as in transformers
_EACH = 32  # elements that share a scale in MXFP4, in 16 bytes


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor(StoredTensor):
    """Weight that is stored as numbers of few bits and their scales.

    Dtype (bfloat16) and shape belong to the weight after reading.

    Attributes:
        values: Raw name of the numbers.
        scales: Raw name of the scales.
        block: Rows and columns that share a scale; None in MXFP4, and where one scale is for all.
        stored: The two tensors in the files.
    """

    values: str
    scales: str
    block: tuple[int, int] | None
    stored: tuple[StoredTensor, StoredTensor]

    def dequantize(self, read: Read) -> Tensor:
        """Compute the weight in bfloat16, to the bit as transformers does.

        Args:
            read: Reads a stored tensor, by what its header says and its raw name.
        """
        import torch

        values = read(self.stored[0], self.values)
        scales = read(self.stored[1], self.scales)
        out = torch.empty(self.shape, dtype=torch.bfloat16)
        if self.stored[0].dtype not in _FP8:
            from transformers.integrations.mxfp4 import convert_moe_packed_tensors

            # Expert by expert: what the function needs beside its result is six times as large.
            for expert in range(len(values)):
                one = slice(expert, expert + 1)
                out[one] = convert_moe_packed_tensors(values[one], scales[one])
            return out
        # W = s q, with one s for each block of rows and columns: multiplied in float32 and rounded
        # once. The last block of a row or a column may be a part of one.
        rows, columns = self.block or self.shape[-2:]
        scales = scales.float().reshape(*self.shape[:-2], -(-self.shape[-2] // rows), -1)
        for number in range(scales.shape[-2]):
            here = slice(number * rows, (number + 1) * rows)
            wide = scales[..., number : number + 1, :].repeat_interleave(columns, dim=-1)
            out[..., here, :] = values[..., here, :].float() * wide[..., : self.shape[-1]]
        return out


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the quantisation in the fields of a ``config.json``, or of its language part;
    empty where there is none."""
    for part in (config, config.get("text_config")):
        found = part.get(_KEY) if isinstance(part, Mapping) else None
        if isinstance(found, dict) and found:
            return found
    return {}


def quantization_name(settings: Mapping[str, Any]) -> str:
    """Name of a quantisation, with its format where the method has several, such as
    ``compressed-tensors (nvfp4-pack-quantized)``; empty where there is none."""
    if not settings:
        return ""
    method = settings.get("quant_method", "an unnamed method")
    name = f"{getattr(method, 'value', method)!s:.40}"
    kind = settings.get("quant_algo") or settings.get("format")
    return f"{name} ({kind!s:.40})" if kind else name


def is_dequantized(settings: Mapping[str, Any]) -> bool:
    """Tell whether weights of this quantisation are dequantised while they are read."""
    return settings.get("quant_method") in _READ


def check_quantization(config: PretrainedConfig, owner: object, action: str) -> None:
    """Raise `SourceError` where weights are quantised, in a way that is not undone here.

    Args:
        config: The model's config.
        owner: The checkpoint, for the message.
        action: What cannot be done with them, such as ``merged``.
    """
    if name := quantization_name(quantization_of(config.to_dict())):
        raise SourceError(
            f"{owner}: weights quantised by {one_line(name)} cannot be {action}; give the "
            "unquantised model, or one in FP8 (weight_scale_inv) or MXFP4"
        )


def plain_config(fields: dict[str, Any]) -> None:
    """Take quantisation out of a ``config.json``, which then describes the dequantised model."""
    for part in (fields, fields.get("text_config")):
        if isinstance(part, dict):
            part.pop(_KEY, None)
            if part.pop("torch_dtype", None) is not None or part.get("dtype") is not None:
                part["dtype"] = "bfloat16"


def dequantized(
    stored: Mapping[str, StoredTensor], settings: Mapping[str, Any], owner: str
) -> Mapping[str, StoredTensor]:
    """Tensors of a checkpoint as they are read: a quantised weight takes the place of its numbers
    and scales.

    Args:
        stored: Tensors in its files.
        settings: Settings of the quantisation.
        owner: The checkpoint, for messages.

    Raises:
        SourceError: Numbers have no scales, or scales of another shape.
    """
    if not is_dequantized(settings):
        return stored
    found = dict(_weights(stored, settings, owner))
    used = {name for weight in found.values() for name in (weight.values, weight.scales)}
    # of the inputs of a layer, which are quantised only while a server computes
    inputs = {f"{name.rpartition('.')[0]}.activation_scale" for name in used}
    rest = {name: info for name, info in stored.items() if name not in used | inputs}
    for name, info in rest.items():
        are_scales = name.endswith(("_scales", "_scale_inv"))
        if info.dtype in (*_FP8, "I8") or are_scales or name.endswith("_blocks"):
            missing = "numbers" if are_scales else "scales"
            raise SourceError(
                f"{owner}: {name} ({info.dtype}) has no {missing}; give the model in bfloat16"
            )
    return rest | found


def _weights(
    stored: Mapping[str, StoredTensor], settings: Mapping[str, Any], owner: str
) -> Iterator[tuple[str, QuantizedTensor]]:
    """The quantised weights by the names that they have in the dequantised model."""
    block = settings.get("weight_block_size", _BLOCK)
    sizes = block if isinstance(block, list) else []
    sizes = [size for size in sizes if type(size) is int and size > 0]
    if block is not None and not len(sizes) == len(block) == 2:
        what = f"weight_block_size is {block!r:.60}, not two sizes"
        raise SourceError(f"{owner}: config.json: {what}")
    for name, info in stored.items():
        weight = name.removesuffix("_blocks")
        scales = f"{weight}_scales" if weight != name else f"{name}_scale_inv"
        if (scale := stored.get(scales)) is None:
            continue
        if weight != name:
            shape = _mxfp4_shape(info, scale)
            own = None
        else:
            own = None if block is None or scale.numel == 1 else (block[0], block[1])
            shape = info.shape if _fits(info, scale, own) else None
        if shape is None:
            raise SourceError(
                f"{owner}: {name} is {info} with scales {scale}, which do not fit; give the "
                "model in bfloat16"
            )
        yield (
            weight,
            QuantizedTensor(
                "BF16",
                shape,
                info.file,
                values=name,
                scales=scales,
                block=own,
                stored=(info, scale),
            ),
        )


def _mxfp4_shape(blocks: StoredTensor, scales: StoredTensor) -> tuple[int, ...] | None:
    """Shape of experts: the numbers of a row lie in blocks, and the model has rows as columns."""
    fits = blocks.dtype == scales.dtype == "U8" and blocks.shape == (*scales.shape, _EACH // 2)
    if not fits or len(scales.shape) != 3:
        return None
    experts, rows, groups = scales.shape
    return experts, groups * _EACH, rows


def _fits(values: StoredTensor, scales: StoredTensor, block: tuple[int, int] | None) -> bool:
    """Tell whether there is a scale for each block of an FP8 weight."""
    if values.dtype not in _FP8 or scales.dtype not in _SCALES or len(values.shape) < 2:
        return False
    if block is None:
        return scales.numel == 1
    rows, columns = values.shape[-2:]
    return scales.shape == (*values.shape[:-2], -(-rows // block[0]), -(-columns // block[1]))
