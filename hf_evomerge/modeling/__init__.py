"""The merged model as a class of transformers: configuration, model, and their registration with the Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_evo_merged import EvoMergedConfig, check_alike
from .modeling_evo_merged import MLP_BRANCH, EvoMergedForCausalLM, EvoMergedModel, EvoMergedPreTrainedModel

__all__ = [
    "MLP_BRANCH",
    "EvoMergedConfig",
    "EvoMergedForCausalLM",
    "EvoMergedModel",
    "EvoMergedPreTrainedModel",
    "check_alike",
    "register",
]


def register() -> None:
    """Make transformers' Auto classes know the merged model, so that it loads without ``trust_remote_code``."""
    AutoConfig.register(EvoMergedConfig.model_type, EvoMergedConfig, exist_ok=True)
    AutoModel.register(EvoMergedConfig, EvoMergedModel, exist_ok=True)
    AutoModelForCausalLM.register(EvoMergedConfig, EvoMergedForCausalLM, exist_ok=True)


register()
