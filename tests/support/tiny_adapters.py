"""LoRA adapters of random numbers, for any small model in a folder."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
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


def products_of(folder):
    """What an adapter adds to each module, in float64, by the module's name."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            tensors[name.replace("lora_A", "lora_B")].double() @ a.double()
        )
        for name, a in tensors.items()
        if "lora_A" in name
    }


def best_of(change, rank):
    """The best matrix of a rank, and the share of the squared length that it keeps."""
    u, values, v = torch.linalg.svd(change)
    squares = values.square()
    share = float(squares[:rank].sum() / squares.sum())
    return u[:, :rank] @ values[:rank].diag() @ v[:rank], share
