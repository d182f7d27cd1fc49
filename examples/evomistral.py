"""Reads the paper's EvoLLM-JP-v1-10B, whose path is among its weights, as a recipe that
`hf-evomerge merge` builds.

Its layout (`model_type: evomistral`, for transformers 4) stores Mistral's layers once;
`model.input_layers` says which of them each hop runs, and `model.input_scales` what the MLP output
of the hop before is multiplied by. This script makes the folder's config that of a Mistral of the
stored layers (`config.evomistral.json` keeps the old one), and writes a recipe with the path beside
it. It runs no code of the model and changes no weight.

    hf download SakanaAI/EvoLLM-JP-v1-10B --local-dir evollm-stored
    python evomistral.py evollm-stored
    hf-evomerge merge evollm-stored/recipe.yaml --out evollm-10b
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors import safe_open

from hf_evomerge import FlowPart, Recipe, SourceRef

LAYERS = "model.input_layers"
SCALES = "model.input_scales"
THEIRS = ("auto_map", "num_hops", "transformers_version", "use_cache")


def main() -> None:
    """Write both files, or say in one line why not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the downloaded model")
    folder = parser.parse_args().folder
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("model_type") != "evomistral":
        raise SystemExit(
            f"{file}: model_type is {config.get('model_type')!r}, not 'evomistral'; nothing to do"
        )
    layers = numbers(folder, LAYERS)
    scales = numbers(folder, SCALES)
    if not len(layers) == len(scales) == config["num_hops"]:
        raise SystemExit(
            f"{folder}: {len(layers)} layers, {len(scales)} scales, {config['num_hops']} "
            "hops; download it again"
        )
    flow = FlowPart(
        path=[f"0:{layer}" for layer in layers], scales=scales, scale_target="mlp_delta"
    )
    Recipe(sources=[SourceRef(model=str(folder.resolve()))], flow=flow).save(folder / "recipe.yaml")
    file.rename(folder / "config.evomistral.json")
    kept = {key: value for key, value in config.items() if key not in THEIRS}
    mistral = {**kept, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    file.write_text(json.dumps(mistral, indent=2) + "\n", encoding="utf-8")


def numbers(folder: Path, name: str) -> list[float]:
    """One of the two rows of numbers among the weights."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (not a mapping)
                values: list[float] = tensors.get_tensor(name).tolist()
                return values
    raise SystemExit(f"{folder}: no tensor called {name}, which holds the path; download it again")


if __name__ == "__main__":
    main()
