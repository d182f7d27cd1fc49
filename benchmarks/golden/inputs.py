"""The inputs of golden hashes: tiny models and problems, the same bytes for every work tree. Knows
nothing of the package."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = [*(f"w{number}" for number in range(12)), *map(str, range(10))]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
SPLITS = {"search": 5, "validation": 4, "test": 6, "other": 3}


def make_inputs(folder: Path) -> None:
    """Write models of two or three blocks, in float32 and bfloat16, an adapter, and problems;
    without the package."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

    def model(layers: int = 2, words: int = len(SPECIAL + WORDS)) -> Any:
        own = {
            "num_hidden_layers": layers,
            "vocab_size": words,
            "max_position_embeddings": 48,
            "initializer_range": 0.4,
        }
        return LlamaForCausalLM(LlamaConfig(**sizes, **ids, **own))

    models = {name: model() for name in ("base", "a", "b", "c")} | {
        "deep": model(3),
        "wide": model(2, len(SPECIAL + WORDS) + 3),
    }
    with torch.no_grad():
        for name in ("a", "b", "c", "wide"):
            for own, common in zip(
                models[name].parameters(), models["base"].parameters(), strict=True
            ):
                own[: len(common)] = common + torch.randn_like(common) * 0.2
    write_problems(folder / "float32", [models["a"], models["b"]])
    for dtype in (torch.float32, torch.bfloat16):
        for name, each in models.items():
            place = folder / str(dtype).removeprefix("torch.") / name
            each.to(dtype).save_pretrained(place)
            tokenizer([*WORDS, "x", "y", "z"] if name == "wide" else WORDS).save_pretrained(place)
    write_adapter(folder / "float32" / "lora")


def write_problems(folder: Path, writers: Sequence[Any]) -> None:
    """Write prompts whose right answers are what the models say in turn: each solves its own
    share."""
    import torch

    rng = random.Random(0)
    words = tokenizer(WORDS)
    folder.mkdir(parents=True)
    for split, count in SPLITS.items():
        lines = []
        for number in range(count):
            prompt = " ".join([split[0] + str(number), *rng.choices(WORDS, k=rng.randint(3, 8))])
            ids = torch.tensor([words(prompt)["input_ids"]])
            written = writers[number % len(writers)].generate(
                ids, max_new_tokens=2, do_sample=False, trust_remote_code=False
            )
            answer = words.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
            lines.append(
                json.dumps({"prompt": prompt, "answer": answer.strip() or rng.choice(WORDS)})
            )
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_adapter(folder: Path) -> None:
    """Write a LoRA of rank 2 in the format of peft, whose import would take longer than a
    search."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for layer in range(2):
        for module, size in (("self_attn.q_proj", 16), ("mlp.up_proj", 24)):
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(2, 16) * 0.3
            tensors[f"{name}.lora_B.weight"] = torch.randn(size, 2) * 0.3
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "up_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def tokenizer(words: Sequence[str]) -> Any:
    """One token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="<unk>")
    )
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = {
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=own, **tokens)
