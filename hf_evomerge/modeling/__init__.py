"""The merged model as a class of transformers: configuration, model, and their registration with the Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import is_torch_available

from .configuration_evo_merged import EvoMergedConfig
from .sources_evo_merged import check_alike

if is_torch_available():
    from .modeling_evo_merged import (
        MLP_BRANCH,
        EvoMergedForCausalLM,
        EvoMergedForImageTextToText,
        EvoMergedModel,
        EvoMergedPreTrainedModel,
    )

__all__ = [
    "MLP_BRANCH",
    "EvoMergedConfig",
    "EvoMergedForCausalLM",
    "EvoMergedForImageTextToText",
    "EvoMergedModel",
    "EvoMergedPreTrainedModel",
    "check_alike",
    "register",
]


def register() -> None:
    """Make transformers' Auto classes know the merged model, so that it loads without ``trust_remote_code``."""
    AutoConfig.register(EvoMergedConfig.model_type, EvoMergedConfig, exist_ok=True)
    if is_torch_available():
        AutoModel.register(EvoMergedConfig, EvoMergedModel, exist_ok=True)
        AutoModelForCausalLM.register(EvoMergedConfig, EvoMergedForCausalLM, exist_ok=True)
        AutoModelForImageTextToText.register(EvoMergedConfig, EvoMergedForImageTextToText, exist_ok=True)


register()
