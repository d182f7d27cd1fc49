"""Parts of the fused parameters of a live model by their names in the checkpoint: transformers
stacks experts when loading."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def fused_parts(model: PreTrainedModel) -> dict[str, Tensor]:
    """Views of the parameters that the model keeps in another layout than its checkpoint.

    What transformers would do to save a parameter is done to the numbers of its rows, so that
    nothing of its size is made.

    Args:
        model: A loaded model.

    Returns:
        A view for each raw name that the checkpoint has and the model has not. What is not made of
        whole consecutive rows of one parameter is left out.
    """
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    parts: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or not parameter.is_contiguous():
            continue
        # A conversion that only splits, stacks and transposes rows can be read off an example. Each
        # row is replaced by its number (exact in float64), the library's own conversion is run on
        # these, and the numbers that come out say which rows a tensor of the checkpoint is made of.
        # Consecutive numbers are a view.
        width = parameter.shape[-1]
        rows = torch.arange(parameter.numel() // width, dtype=torch.float64).view(
            *parameter.shape[:-1], 1
        )
        for raw, numbers in revert_weight_conversion(model, {name: rows}).items():
            first = int(numbers.flatten()[0])
            if raw != name and torch.equal(
                numbers.flatten(), rows.flatten()[first : first + numbers.numel()]
            ):
                span = parameter.data.view(-1, width)[first : first + numbers.numel()]
                parts[raw] = span.view(*numbers.shape[:-1], width)
    return parts
