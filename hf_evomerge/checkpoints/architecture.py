"""Fit of a checkpoint's tensors to its architecture, by transformers' own class and its own
loading.

Works on the meta device, from a config, names and shapes: nothing is allocated, no weight is read.
Names and layouts that transformers converts when it loads are converted here by the same code.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, one_line
from .headers import TensorInfo, tensor_order

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_SHOWN = 3


def check_architecture(
    config: PretrainedConfig, tensors: Mapping[str, TensorInfo], where: str
) -> list[str]:
    """Compare a checkpoint's tensors with its architecture.

    Args:
        config: Its config.
        tensors: Dtype and shape of its tensors, by their raw names.
        where: Name in messages.

    Returns:
        What is doubtful, one line each: tensors that have no place, or that the architecture is not
        known to the installed transformers, so that nothing was compared.

    Raises:
        SourceError: A tensor is missing, or has another shape than the config says.
    """
    name = (config.architectures or [""])[0]
    kind = model_class(config, name)
    if kind is None:
        known = (
            f"transformers has no {name} for the model type {config.model_type!r}"
            if name
            else "config.json names none"
        )
        return [f"architecture of {where}: {known}, so its tensors were not compared with one"]
    try:
        missing, misshapen, extra = fit_of(kind, config, tensors)
    except Exception as cause:
        # anything: a class may need a library that is not installed, or values that meta has not
        return [
            (
                f"architecture of {where}: {kind.__name__} cannot be laid out, its tensors were "
                f"not compared: {one_line(cause)}"
            )
        ]
    asked = f"{where}: {kind.__name__}, as its config.json describes it,"
    if missing:
        raise SourceError(
            f"{asked} needs tensors that are not there: {_names(missing)}; transformers would fill "
            "them with random numbers; save the model again, or correct its config.json"
        )
    if misshapen:
        raise SourceError(
            f"{asked} needs other shapes: {_names(misshapen)}; correct its config.json"
        )
    if not extra or not name:  # without a name only the body is known, and there may be any head
        return []
    return [
        f"{asked} has no place for {_names(extra)}: they are merged, and left out when it is loaded"
    ]


def fit_of(
    kind: type[PreTrainedModel], config: PretrainedConfig, tensors: Mapping[str, TensorInfo]
) -> tuple[list[str], list[str], list[str]]:
    """Let transformers load these tensors, without numbers, into this class.

    Returns:
        Tensors that the class asks for and the checkpoint lacks; one line for each tensor of
        another shape than the config says; tensors that the class has no place for.
    """
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    # transformers' own loading decides: renamings, fused experts and tied tensors are its business,
    # and differ from release to release. On the meta device tensors have shapes and no memory, so
    # it runs in full without reading a weight.
    with torch.device("meta"):
        model = kind(copy.deepcopy(config))
    state = {name: torch.empty(info.shape, device="meta") for name, info in tensors.items()}
    conversions: Any = get_model_conversion_mapping(model)
    settings = LoadStateDictConfig(
        device_map={"": "meta"}, ignore_mismatched_sizes=True, weight_mapping=conversions
    )
    with _no_bar():
        found, _ = convert_and_load_state_dict_in_model(model, state, settings)
    model._adjust_missing_and_unexpected_keys(found)
    missing: set[str] = found.missing_keys - model.all_tied_weights_keys.keys()
    if (
        "add_pooling_layer" in inspect.signature(kind).parameters
    ):  # such models are often saved without it
        missing = {name for name in missing if "pooler" not in name.split(".")}
    misshapen = [
        f"{name} is {list(here)}, not {list(there)}"
        for name, here, there in sorted(found.mismatched_keys)
    ]
    misshapen += [one_line(text) for text in found.conversion_errors.values()]
    extra = sorted(found.unexpected_keys, key=tensor_order)
    return sorted(missing, key=tensor_order), misshapen, extra


def model_class(config: PretrainedConfig, name: str) -> type[PreTrainedModel] | None:
    """transformers' own class of that name, if it is one for this config; without a name the one
    without a head."""
    import transformers

    kind: Any = (
        getattr(transformers, name, None)
        if name
        else transformers.MODEL_MAPPING.get(type(config), None)
    )
    wanted = getattr(kind, "config_class", None)
    fits = (
        wanted is not None
        and isinstance(config, wanted)
        and issubclass(kind, transformers.PreTrainedModel)
    )
    return kind if fits and type(config).__module__.startswith("transformers.") else None


def is_of_kind(config: PretrainedConfig, mappings: Iterable[str]) -> bool:
    """Say whether a model is of a class in one of transformers' mappings, by its config's
    architecture and type.

    A class that transformers does not have may be one, by its type. An encoder, or an
    encoder-decoder, is no causal language model, although transformers can make one of its type.

    Args:
        config: Its config.
        mappings: Names of the mappings, such as ``MODEL_FOR_CAUSAL_LM_MAPPING``; ``MODEL_MAPPING``
            has all models.
    """
    import transformers

    name = (config.architectures or [""])[0]
    # transformers has a causal class for many encoders (BERT as a decoder, for one), so a type's
    # place in that mapping says little. The config's own flags decide what the model is.
    whole = getattr(config, "is_encoder_decoder", False)
    encodes = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(
        config, "is_decoder", True
    )
    for mapping in mappings:
        kinds: Any = getattr(transformers, mapping).get(type(config), None)
        if kinds is None or (mapping == "MODEL_FOR_CAUSAL_LM_MAPPING" and (whole or encodes)):
            continue
        names = [kind.__name__ for kind in (kinds if isinstance(kinds, tuple | list) else [kinds])]
        if mapping == "MODEL_MAPPING" or name in names or not hasattr(transformers, name):
            return True
    return False


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


@contextmanager
def _no_bar() -> Iterator[None]:
    """Nothing is loaded: keep the bar that says so off the screen."""
    from transformers.utils.logging import set_tqdm_hook

    before = set_tqdm_hook(
        lambda factory, args, kwargs: factory(*args, **{**kwargs, "disable": True})
    )
    try:
        yield
    finally:
        set_tqdm_hook(before)
