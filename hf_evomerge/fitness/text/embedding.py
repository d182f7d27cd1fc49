"""Modules after an encoder on live models: pooling, Dense, LayerNorm and Normalize, as
sentence-transformers computes them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoints.checkpoint import Parent
from ...checkpoints.sentence import Sentence
from ...errors import FitnessError, SourceError, told
from .encoding import device_of

# Each takes hidden states (B, T, hidden) and their mask (B, T), and gives (B, hidden).
_POOLING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda states, mask: (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True),
    "max": lambda states, mask: states.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1),
    "cls": lambda states, mask: states[torch.arange(len(states)), mask.argmax(1)],
    "lasttoken": lambda states, mask: states[
        torch.arange(len(states)), mask.shape[1] - 1 - mask.flip(1).argmax(1)
    ],
}
_TRAINED = {"Dense": "linear", "LayerNorm": "norm"}  # what their layer is called


def attach_modules(source: Parent, model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Give a live model the modules with weights that follow it, each under the name of its folder.

    Args:
        source: The model's checkpoint.
        model: The model.
        dtype: The modules' dtype; as they are stored where None.

    Raises:
        SourceError: A module is of a kind that is not computed here, or its tensors are not its
            kind's.
    """
    for module in source.sentence.modules:
        if module.weights is None:
            continue
        if (part := _TRAINED.get(module.kind)) is None:
            raise SourceError(
                f"{source}: {module.folder} is a {module.kind}, which is merged but not "
                "scored; score a build"
            )
        weights = {
            name: source.read(f"{module.folder}/{name}").to(device_of(model), dtype, copy=True)
            for name in module.header(str(source))
        }
        what = f"{source}: {module.folder} is no {module.kind} of torch's layers: "
        with told(SourceError, (AttributeError, KeyError, TypeError, RuntimeError), what):
            shape = weights[f"{part}.weight"].shape
            bias = f"{part}.bias" in weights
            own = (
                nn.LayerNorm(shape, device="meta")
                if part == "norm"
                else nn.Linear(shape[-1], shape[0], bias, device="meta")
            )
            name = module.settings.get(
                "activation_function", "Identity"
            )  # a stranger's: an activation, and no other class
            activation = (
                nn.Identity() if name == "Identity" else getattr(nn.modules.activation, name)()
            )
            layer = nn.Sequential(OrderedDict({part: own, "activation": activation}))
            layer.load_state_dict(weights, assign=True)
        model.add_module(module.folder, layer)


def check_sentence(sentence: Sentence, pooling: str | None) -> None:
    """Raise `FitnessError` where the vectors of a folder are made in a way that is not computed
    here."""
    for number, module in enumerate(sentence.modules):
        settings = module.settings
        refused = list[str]()
        if module.kind == "Pooling":
            refused = [
                mode for mode in (pooling or settings["pooling"]).split("+") if mode not in _POOLING
            ]
            refused += (
                ["include_prompt: false"]
                if not settings["include_prompt"] and any(sentence.prompts)
                else []
            )
        elif number == 0 or module.kind not in (*_TRAINED, "Normalize", "Dropout"):
            refused = [module.kind]
        elif settings and (
            settings["use_residual"] or settings["module_input_name"] != "sentence_embedding"
        ):
            refused = [f"{module.kind} with a residual or of tokens"]
        if refused:
            raise FitnessError(
                f"{sentence.folder}: {module.folder}: {refused[0]} is not computed by the "
                "task retrieval; score it by a Python "
                "function, with SentenceTransformer"
            )


# With hidden states h_t and mask m_t: mean = sum m_t h_t / sum m_t; max over m_t = 1; cls and
# lasttoken are the first and the last place with m_t = 1, on whichever side the padding is. Several
# modes are concatenated. Then the folder's modules follow in their order.
def pooled(
    model: Any, sentence: Sentence, states: Tensor, mask: Tensor, pooling: str | None = None
) -> Tensor:
    """The vectors of texts, not normalised unless the folder says so.

    Args:
        model: The model, with its modules attached.
        sentence: What the folder says; it has been checked.
        states: (B, T, hidden) last hidden states.
        mask: (B, T), 1 where there is a token.
        pooling: What is pooled in place of what the folder says; the mean where neither says.
    """
    told = next(
        (module.settings["pooling"] for module in sentence.modules if module.kind == "Pooling"),
        "mean",
    )
    vectors = torch.cat([_POOLING[mode](states, mask) for mode in (pooling or told).split("+")], 1)
    for module in sentence.modules:
        if module.kind == "Normalize":
            vectors = nn.functional.normalize(vectors, dim=1)
        elif module.weights is not None:
            layer = getattr(model, module.folder)
            vectors = layer(vectors.to(next(layer.parameters()))).float()
    return vectors
