"""Measures a TIES of three LoRA adapters as an adapter, in core space, and as a whole model.

Makes a Llama of SmolLM2-135M's shape with random weights and three adapters of rank 16 on all
linear layers. Prints seconds and bytes of both builds, and for a candidate of a search the seconds
to merge it and to turn a gradient of the model into that of its numbers.

    python benchmarks/core_space.py --work /tmp/core-space
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gradient_memory import SHAPES, make_family
from transformers import AutoModelForCausalLM

from hf_evomerge import Recipe, build_model
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.merging.joined import JoinedAdapters


def main() -> None:
    """Print one line for each build, and one for the candidate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for models")
    work = parser.parse_args().work
    make_family(work, "float32", SHAPES["135M"], ())
    base = {"model": str(work / "base")}
    names = ["lora-a", "lora-b", "lora-c"]
    parameters = [{"weight": 0.8, "density": 0.5}] * 3
    for core in (True, None):
        recipe = Recipe.model_validate(
            {
                "sources": [{**base, "adapter": str(work / name)} for name in names],
                "base": base,
                "merge": {"method": "ties", "core_space": core, "parameters": parameters},
            }
        )
        out = work / f"merged-{core}"
        seconds, _ = timed(lambda: build_model(recipe, out, overwrite=True))  # noqa: B023
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        print(f"{'core space' if core else 'whole'}: {seconds:.1f} s, {size / 1e6:.1f} MB")
    sources: list[Any] = [open_source(ref) for ref in recipe.sources]
    model = AutoModelForCausalLM.from_pretrained(work / "base", trust_remote_code=False)
    joined = JoinedAdapters(sources, open_source(str(work / "base")), "ties", model, core=True)
    joined.apply(parameters)
    merge, _ = timed(lambda: joined.apply(parameters))
    for layer in joined.layers:
        layer.weighted.grad = torch.randn_like(layer.weighted)
    slopes, _ = timed(lambda: joined.gradient(parameters, {}, lambda: None))
    print(f"a candidate: {merge:.2f} s to merge, {slopes - merge:.2f} s for its slopes")


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds of some work, and its result."""
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


if __name__ == "__main__":
    main()
