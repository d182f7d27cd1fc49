"""Measures transformers' continuous batching beside batches of 16, on random models of two shapes:
CPU seconds, one thread.

OMP_NUM_THREADS=1 python benchmarks/continuous_batching.py
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
)

from hf_evomerge.fitness.text.encoding import length_batches

SHAPES: dict[str, dict[str, Any]] = {
    "the demo's": {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
    },
    "SmolLM2-135M's": {
        **{
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
        },
        **{"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    },
}


def plain(model: Any, prompts: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    """Left-padded batches of similar length, as fitness tasks have them."""
    written: list[list[int]] = [[]] * len(prompts)
    for batch in length_batches([len(prompt) for prompt in prompts], 16):
        longest = max(len(prompts[i]) for i in batch)
        gaps = [longest - len(prompts[i]) for i in batch]
        ids = torch.tensor([[0] * gap + prompts[i] for gap, i in zip(gaps, batch, strict=True)])
        mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps])
        with torch.inference_mode():
            rows = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                trust_remote_code=False,
            )[:, longest:].tolist()
        for i, row in zip(batch, rows, strict=True):
            written[i] = row
    return written


def continuous(model: Any, prompts: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    """A cache of just enough pages: by default it takes nearly all memory, which is slower."""
    pages = len(prompts) * (1 + (40 + (config.max_new_tokens or 0)) // 32)
    settings = ContinuousBatchingConfig(page_size=32, num_blocks=pages, max_batch_tokens=256)
    found = model.generate_batch(
        prompts, generation_config=config, continuous_batching_config=settings, progress_bar=False
    )
    return [each.generated_tokens for each in found.values()]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(
        "| model | prompts, tokens of each | batches | continuous | the same tokens |\n| --- "
        "| --- | ---: | ---: | ---: |"
    )
    for name, prompt_count, tokens in (
        ("the demo's", 16, 16),
        ("the demo's", 64, 64),
        ("SmolLM2-135M's", 16, 16),
    ):
        rng = random.Random(0)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(**{"vocab_size": 256, **SHAPES[name]}), trust_remote_code=False
        ).eval()
        prompts = [
            [rng.randrange(5, 250) for _ in range(rng.randrange(8, 40))]
            for _ in range(prompt_count)
        ]
        config = GenerationConfig(
            do_sample=False, max_new_tokens=tokens, eos_token_id=1, pad_token_id=0
        )

        def measured(
            run: Callable[..., list[list[int]]], *given: Any
        ) -> tuple[float, list[list[int]]]:
            run(*given)
            begin = time.process_time()
            written = run(*given)
            return time.process_time() - begin, written

        (one, expected), (other, found) = (
            measured(run, model, prompts, config) for run in (plain, continuous)
        )
        same = sum(a[: len(b)] == b for a, b in zip(expected, found, strict=True))
        print(
            (
                f"| {name} | {prompt_count}, {tokens} | {one:.2f} s | {other:.2f} s | {same} of "
                f"{prompt_count} |"
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
