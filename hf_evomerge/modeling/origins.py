"""Origins of a merged checkpoint's tensors, and a check that an architecture's layers may stand in
any place.

Works on the meta device: nothing is allocated, no weight is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_evo_merged import MAX_HOPS, EvoMergedConfig
from .modeling_evo_merged import merged_class
from .sources_evo_merged import decoder_of


def plan_tensors(config: EvoMergedConfig) -> dict[str, tuple[tuple[int, str], tuple[int, ...]]]:
    """Map every tensor of the merged checkpoint to its source, its raw name there, and the shape
    that it must have.

    Args:
        config: The configuration of the merged model.

    Returns:
        ``{name in the merged checkpoint: ((source, name in the source's checkpoint), shape)}``.
        Names are those that ``save_pretrained`` writes. A layer that runs several times is there
        once, under the first slot that runs it.

    Raises:
        ValueError: The names that the architecture writes do not say which layer they belong to.
    """
    with torch.device("meta"):
        merged = merged_class(config)(config)
    state = saved_tensors(merged)
    raw = as_written(merged, state)
    prefix = f"{merged._inner_name}."
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    known = as_written(merged.inner, inside)
    layers = written_layers(merged.inner, inside, f"{merged._layers_name.removeprefix(prefix)}.0.")
    if layers is None or {f"{prefix}{name}" for name in known} != raw.keys():
        raise ValueError(
            "text_config.model_type: the names under which "
            f"{config.text_config.model_type!r} writes its tensors do not say of "
            f"which layer they are; make the model with LayerPool, and save it"
        )
    plan = {}
    for name, tensor in raw.items():
        origin = config.embedding_source, name.removeprefix(prefix)
        if origin[1].startswith(layers):
            slot, _, rest = origin[1].removeprefix(layers).partition(".")
            source, layer = config.slots[int(slot)]
            origin = source, f"{layers}{layer}.{rest}"
        plan[name] = origin, tuple(tensor.shape)
    return plan


def written_layers(
    model: PreTrainedModel, state: dict[str, torch.Tensor], first: str
) -> str | None:
    """Return how names of tensors of layers begin as written, up to the number; None where they do
    not begin alike."""
    names = list(
        as_written(
            model, {name: tensor for name, tensor in state.items() if name.startswith(first)}
        )
    )
    begin, found, _ = names[0].partition(".0.")
    return f"{begin}." if found and all(name.startswith(f"{begin}.0.") for name in names) else None


def saved_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of a model that ``save_pretrained`` writes, under their names in the model."""
    left_out = model.all_tied_weights_keys.keys() | set(model._keys_to_ignore_on_save or ())
    return {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}


def as_written(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the names, and in the shapes, in which ``save_pretrained`` writes them."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, dict(state))


def is_kept_in_float32(model: Any, name: str) -> bool:
    """Tell whether a model, or its class, keeps a tensor in float32, whatever dtype it has."""
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    return bool(kept & set(name.split(".")))


def check_rearrangeable(configs: Sequence[PreTrainedConfig]) -> None:
    """Raise `ValueError` unless every layer of these sources would compute the same in any place of
    a model.

    Tried with one source's layers moved on by one, and one layer more: what depends on the number
    of a layer, on how many there are, or on being the first or the last, differs then.
    """
    seen: list[dict[str, Any]] = []
    for config in configs:
        if (fields := config.to_dict()) in seen:
            continue
        seen.append(fields)
        count = decoder_of(config).num_hidden_layers
        if not 0 < count < MAX_HOPS:
            raise ValueError(
                f"num_hidden_layers: {count}; a source has between 1 and {MAX_HOPS - 1} layers"
            )
        EvoMergedConfig.from_sources([config], [f"0:{layer}" for layer in [*range(1, count), 0, 0]])
