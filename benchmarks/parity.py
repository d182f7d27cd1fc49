"""Compares the merge methods with mergekit's, in float32: the largest difference of any element.

Makes a small Llama and three fine-tunes of it, merges them here and with mergekit, and prints a table. mergekit is installed in
a virtual environment of its own and only run, never imported here. DARE is random in both: with density 1 it is compared
element by element, otherwise by the share that is kept and by the factor on what is kept.

    python benchmarks/parity.py --venv /tmp/mergekit-venv
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evomerge.merging.checkpoint import merge_checkpoint
from hf_evomerge.recipe import Recipe

MERGEKIT = "mergekit==0.1.5"
RUN = """
import json, sys
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for name, config in json.load(open(sys.argv[1])).items():
    options = MergeOptions(random_seed=0, copy_tokenizer=False, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(config), out_path=f"{sys.argv[2]}/{name}", options=options)
"""
_TWO = [{"weight": 0.6}, {"weight": 0.9}]
_THREE = [{"weight": 0.7}, {"weight": 0.4}, {"weight": -0.3}]
_DENSE = [{"weight": 0.7, "density": 0.5}, {"weight": 0.4, "density": 0.3}, {"weight": 0.3, "density": 0.05}]

Case = tuple[str, list[dict[str, Any]], dict[str, Any]]
CASES: dict[str, Case] = {
    "linear": ("linear", _TWO, {}),
    "linear, not normalised": ("linear", _THREE, {"normalize": False}),
    "slerp, t = 0.3": ("slerp", [], {"t": 0.3}),
    "task_arithmetic": ("task_arithmetic", _THREE, {}),
    "task_arithmetic, normalised, lambda": ("task_arithmetic", _TWO, {"normalize": True, "lambda": 0.8}),
    "ties": ("ties", _DENSE, {}),
    "ties, not normalised, lambda": ("ties", _DENSE, {"normalize": False, "lambda": 1.3}),
    "ties, negative weight": ("ties", [{"density": 0.6, **values} for values in _THREE], {}),
    "ties, l1": ("ties", _DENSE, {"rescale": "l1"}),
    "dare_linear, density 1": ("dare_linear", _THREE, {}),
    "dare_ties, density 1": ("dare_ties", _THREE, {}),
    "dare_ties, density 1, normalised": ("dare_ties", _TWO, {"normalize": True}),
    "dare_linear, density 0.4": ("dare_linear", [{"weight": 1.0, "density": 0.4}], {}),
}


def main() -> None:
    """Merge with both, and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "hf-evomerge-mergekit")
    python = install(parser.parse_args().venv)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        save_family(work)
        names = {f"case{number}": case for number, case in enumerate(CASES)}
        configs = {short: mergekit_config(work, *CASES[case]) for short, case in names.items()}
        (work / "configs.json").write_text(json.dumps(configs))
        subprocess.run([python, "-c", RUN, work / "configs.json", work / "theirs"], check=True, stderr=subprocess.DEVNULL)
        base = load(work / "base")
        print(f"{'case':38} largest difference, of numbers up to {max(float(t.abs().max()) for t in base.values()):.2f}")
        for short, case in names.items():
            ours = load(merge_checkpoint(recipe(work, *CASES[case]), work / "ours" / short, progress=False))
            theirs = load(work / "theirs" / short)
            if case.endswith("0.4"):
                for who, merged in (("here", ours), ("mergekit", theirs)):
                    print(f"{case:38} {who}: {shares(base, load(work / 'source0'), merged)}")
                continue
            assert set(ours) <= set(theirs), set(ours) ^ set(theirs)
            worst = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
            print(f"{case:38} {worst:.2e}")


def install(folder: Path) -> Path:
    """mergekit's own virtual environment."""
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", MERGEKIT], check=True)
    return python


def save_family(work: Path) -> None:
    """A base and three fine-tunes of it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
    )
    base = LlamaForCausalLM(config)
    base.save_pretrained(work / "base")
    for index in range(3):
        tuned = LlamaForCausalLM(config)
        tuned.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
        tuned.save_pretrained(work / f"source{index}")


def recipe(work: Path, method: str, parameters: list[dict[str, Any]], options: dict[str, Any]) -> Recipe:
    """The case as a recipe."""
    count = len(parameters) or 2
    data: dict[str, Any] = {
        "sources": [{"model": str(work / f"source{index}")} for index in range(count)],
        "merge": {"method": method, "parameters": parameters, "options": options},
    }
    if method not in ("linear", "slerp"):
        data["base"] = {"model": str(work / "base")}
    return Recipe.model_validate(data)


def mergekit_config(work: Path, method: str, parameters: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
    """The case as mergekit's configuration."""
    options = {**options, **({"rescale": True} if options.get("rescale") == "l1" else {})}
    count = len(parameters) or 2
    models = [{"model": str(work / f"source{i}"), "parameters": (parameters or [{}] * count)[i]} for i in range(count)]
    config: dict[str, Any] = {"merge_method": method, "models": models, "parameters": options, "dtype": "float32"}
    if method != "linear":
        config["base_model"] = str(work / ("source0" if method == "slerp" else "base"))
    return config


def load(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def shares(base: dict[str, torch.Tensor], source: dict[str, torch.Tensor], merged: dict[str, torch.Tensor]) -> str:
    """The share of the task vector that is kept, and the mean factor on it."""
    kept = torch.cat([(merged[name] != base[name]).flatten() for name in base])
    there = torch.cat([(merged[name] - base[name]).flatten() for name in base])
    whole = torch.cat([(source[name] - base[name]).flatten() for name in base])
    factor = float(there[kept].abs().sum() / whole[kept].abs().sum())
    return f"{float(kept.float().mean()):.4f} kept, times {factor:.4f}"


if __name__ == "__main__":
    main()
