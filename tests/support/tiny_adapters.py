"""LoRA adapters of random numbers, for any small model in a folder."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

SIZE = 0.2  # of the numbers in the matrices


def save_adapter(base, folder, seed, **settings):
    """Save an adapter of a model, which is loaded from its folder or is changed; it changes
    everything that it may."""
    model = AutoModelForCausalLM.from_pretrained(base) if isinstance(base, Path) else base
    given = {
        "r": 4,
        "lora_alpha": 7,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
        **settings,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuned = get_peft_model(model, LoraConfig(**given))  # begins at random numbers
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                parameter.add_(
                    torch.randn(parameter.shape, generator=generator)
                    * (SIZE if "lora_" in name else SIZE / 10)
                )
    tuned.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # names the base's folder, which the Hub does not take
    return folder
