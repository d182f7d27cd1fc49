"""The merged model as a class of transformers: configuration, model, and their registration with
the Auto classes."""

from __future__ import annotations

import transformers
from transformers.utils import is_torch_available

from .configuration_evo_merged import EvoMergedConfig
from .sources_evo_merged import check_alike

if is_torch_available():
    from .modeling_evo_merged import (
        CLASSES,
        EvoMergedForCausalLM,
        EvoMergedForImageTextToText,
        EvoMergedModel,
        EvoMergedPreTrainedModel,
    )

__all__ = [
    "EvoMergedConfig",
    "EvoMergedForCausalLM",
    "EvoMergedForImageTextToText",
    "EvoMergedModel",
]
__all__ += ["EvoMergedPreTrainedModel", "check_alike", "register"]


def register() -> None:
    """Make transformers' Auto classes know the merged model, so that it loads without
    ``trust_remote_code``."""
    transformers.AutoConfig.register(EvoMergedConfig.model_type, EvoMergedConfig, exist_ok=True)
    for kind in CLASSES if is_torch_available() else ():
        getattr(transformers, str(kind._auto_class)).register(EvoMergedConfig, kind, exist_ok=True)


register()
