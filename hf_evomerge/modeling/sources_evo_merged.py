"""Source architectures of a merged model: whether their layers can run in one, and their
configuration along a path.

This file travels to the Hub beside the weights: it imports nothing but transformers.
"""

import copy
from collections.abc import Sequence
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Fields that hold the numbers of some of the layers, rather than one entry per layer.
_INDEX_LISTS = (
    "mlp_only_layers",
    "moe_layers",
    "full_attn_idxs",
    "attn_layer_indices",
    "hybrid_layer_ids",
)
# Fields that some architectures give once and others once per layer.
_PER_LAYER = (
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "activation_sparsity_pattern",
    "indexer_types",
)
# Fields in which fine-tunes of one model may differ without their layers computing anything else.
_HARMLESS = {
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "transformers_version",
    "vocab_size",
    "tie_word_embeddings",
    "use_cache",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "initializer_range",
    "initializer_cutoff_factor",
    "summary_type",
    "task_specific_params",
    "pretraining_tp",
    "num_hidden_layers",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "tokenizer_class",
    "router_aux_loss_coef",
    "output_router_logits",
    "chunk_size_feed_forward",
    "max_window_layers",
    "attention_types",
    "_name_or_path",
    "is_encoder_decoder",
    "decoder_sparse_step",
    "final_w_init_variance_scale",
}
# Fields in which they may differ, and the embedding source's value is used for the whole model.
_EMBEDDING_SOURCE_DECIDES = {
    "sliding_window",
    "max_position_embeddings",
    "attention_dropout",
    "use_sliding_window",
}


def check_alike(configs: Sequence[PreTrainedConfig], embedding_source: int = 0) -> None:
    """Raise `ValueError` unless layers of these sources can run in one model."""
    if not 0 <= embedding_source < len(configs):
        raise ValueError(
            f"embedding_source: {embedding_source}, but there are {len(configs)} sources"
        )
    first = configs[embedding_source]
    check_architecture(first.model_type)
    has_parts = decoder_of(first) is not first
    for position, config in enumerate(configs):
        if config.model_type != first.model_type and not has_parts:
            more = decoder_of(config) is not config
            raise ValueError(
                f"sources[{position}]: architecture {config.model_type!r}, but source "
                f"{embedding_source} is "
                f"{first.model_type!r}; "
                + (
                    f"take the embeddings of source {position}, which is more"
                    if more
                    else "all sources must be of one"
                )
            )
        reference = _comparable(decoder_of(first))
        found = _comparable(decoder_of(config))
        names = reference.keys() | found.keys()
        if (
            reference["model_type"] != found["model_type"]
        ):  # a language model as a part, and by itself: names and shapes decide
            names = (reference.keys() & found.keys()) - {"model_type"}
            reference = _without_sections(reference)
            found = _without_sections(found)
        for name in sorted(names):
            if found.get(name) == reference.get(name):
                continue
            what = (
                f"sources[{position}]: {name} is {found.get(name)!r:.80}, but "
                f"{reference.get(name)!r:.80} in source "
                f"{embedding_source}"
            )
            if name not in _EMBEDDING_SOURCE_DECIDES:
                raise ValueError(f"{what}; their layers cannot run in one model")
            logger.warning_once(f"{what}; the latter is used for the whole model")


def _comparable(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that must be equal in all sources, without those that belong to single layers."""
    skip = _HARMLESS | set(_per_layer_fields(config)) | set(_INDEX_LISTS)
    renamed = {config.attribute_map.get(name, name) for name in skip}
    return {name: value for name, value in config.to_dict().items() if name not in renamed}


def _without_sections(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without how rotary embeddings are divided among the axes of a picture, which text
    does not notice."""
    rope = fields.get("rope_parameters")
    if not isinstance(rope, dict):
        return fields
    return {
        **fields,
        "rope_parameters": {
            key: value for key, value in rope.items() if key not in ("mrope_section", "type")
        },
    }


def decoder_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the language model: of a vision-language model a part, else the
    whole."""
    return config.get_text_config(decoder=True)


def _per_layer_fields(config: PreTrainedConfig) -> list[str]:
    """The names of the lists with one entry per layer."""
    count = config.num_hidden_layers
    return [
        name
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple))
        and len(value) == count
        and ("layer" in name or name in _PER_LAYER)
        if name not in _INDEX_LISTS and not name.startswith(("_", "mtp"))
    ]


def config_along(
    configs: Sequence[PreTrainedConfig], slots: Sequence[tuple[int, int]], embedding_source: int
) -> PreTrainedConfig:
    """The embedding source's configuration with as many layers as there are slots, and its lists in
    their order."""
    # Fields with one entry per layer follow the slots, each entry from the layer's own source;
    # lists of layer numbers become lists of slots; all else is the embedding source's.
    # `check_alike` has made sure that the other sources say the same of it.
    whole = copy.deepcopy(configs[embedding_source])
    configs = [decoder_of(config) for config in configs]
    merged = decoder_of(whole)
    first = configs[embedding_source]
    if getattr(first, "is_heterogeneous", False):
        raise ValueError(
            "text_config.per_layer_config: layers that differ in this way cannot be rearranged"
        )
    whole.name_or_path = ""
    merged.num_hidden_layers = len(slots)
    for name in _per_layer_fields(first):
        merged_list = [getattr(configs[source], name)[layer] for source, layer in slots]
        setattr(merged, name, type(getattr(first, name))(merged_list))
    for name in _INDEX_LISTS:
        if getattr(first, name, None) is not None:
            setattr(
                merged,
                name,
                [
                    slot
                    for slot, (source, layer) in enumerate(slots)
                    if layer in getattr(configs[source], name)
                ],
            )
    # The Qwen family says by arithmetic on the layer's number which layers are mixtures. In another
    # order no step does, so every layer is asked and the dense ones are listed.
    if getattr(first, "decoder_sparse_step", None) is not None and hasattr(
        first, "mlp_only_layers"
    ):
        merged.decoder_sparse_step = 1
        merged.mlp_only_layers = [
            slot for slot, (source, layer) in enumerate(slots) if _is_dense(configs[source], layer)
        ]
    if getattr(first, "attention_types", None) is not None and hasattr(first, "attention_layers"):
        merged.attention_types = [[[kind], 1] for kind in merged.attention_layers]
    return whole


def kinds_of(config: PreTrainedConfig) -> set[str]:
    """The kinds of layers, for which a model has masks and rotary embeddings."""
    return set(getattr(config, "layer_types", None) or ())


def _is_dense(config: PreTrainedConfig, layer: int) -> bool:
    """Whether a layer of a mixture-of-experts model of the Qwen family has an ordinary MLP."""
    return layer in (config.mlp_only_layers or []) or (layer + 1) % config.decoder_sparse_step != 0


def layer_count(config: Any) -> int | None:
    """`num_hidden_layers` of a configuration or of its mapping, None where it is not said."""
    if isinstance(config, PreTrainedConfig):
        return getattr(decoder_of(config), "num_hidden_layers", None)
    if not isinstance(config, dict):
        return None
    if "text_config" in config:
        return layer_count(config["text_config"])
    model_type = config.get("model_type")
    kind = (
        CONFIG_MAPPING[model_type]
        if isinstance(model_type, str) and model_type in CONFIG_MAPPING
        else None
    )
    if kind and isinstance(
        getattr(kind, "num_hidden_layers", None), property
    ):  # the length of a list
        entries = config.get(kind.attribute_map.get("layer_types", "layer_types"))
        return len(entries) if isinstance(entries, list) else None
    name = (
        kind.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        if kind
        else "num_hidden_layers"
    )
    return config.get(name, config.get("num_hidden_layers"))


def check_architecture(model_type: Any) -> None:
    """Raise `ValueError` unless a model type is one of language models, alone or beside eyes."""
    heads = (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() | MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys()
    )
    if (
        not isinstance(model_type, str)
        or model_type not in CONFIG_MAPPING
        or model_type not in heads
    ):
        raise ValueError(
            f"text_config.model_type: {model_type!r:.80} is not an architecture of causal "
            "language models"
        )
    kind = CONFIG_MAPPING[model_type]
    parts = kind.sub_configs.keys() - {"attn_config", "ffn_config"}
    sees = (
        model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        and {"text_config", "vision_config"} <= parts
    )
    if kind.is_encoder_decoder or (parts and not sees):
        what = (
            "an encoder and a decoder" if kind.is_encoder_decoder else "more than a language model"
        )
        raise ValueError(
            f"text_config.model_type: {model_type!r} is {what}; give the language model alone"
        )
    if model_type == "longcat_flash":
        raise ValueError(
            f"text_config.model_type: a block of {model_type!r} has two attentions with a "
            "cache slot "
            "each; a path needs blocks with one; merge its weights instead"
        )
