"""Compares merges of mixtures of experts with mergekit's, in float32, routers and experts included.

Tiny random models of five architectures, merged here and with mergekit in an environment of its own; see ``parity.py``.
The largest difference is given per architecture and method, or why mergekit merges it not.

    python benchmarks/expert_parity.py --venv /tmp/mergekit-venv
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from hf_evomerge.building.build import build_model
from hf_evomerge.mergekit import from_mergekit

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests" / "support")]
from parity import RUN, install, load, print_difference  # noqa: E402
from tiny_models import tiny_model  # noqa: E402

FIELDS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen3_moe": {"mlp_only_layers": []},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.6},
    "task_arithmetic": {"weight": 0.7},
    "ties": {"weight": 0.7, "density": 0.5},
}


def main() -> None:
    """Merge with both, and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "hf-evomerge-mergekit")
    python = install(parser.parse_args().venv)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for architecture, fields in FIELDS.items():
            save_family(work / architecture, architecture, fields)
        for architecture in FIELDS:
            for method, values in METHODS.items():
                compare(python, work, architecture, method, values)


def save_family(folder: Path, architecture: str, fields: dict[str, Any]) -> None:
    """A base and two models near it."""
    base = tiny_model(architecture, layers=2, **fields)
    base.save_pretrained(folder / "base")
    for seed in range(2):
        torch.manual_seed(seed)
        tuned = tiny_model(architecture, layers=2, **fields)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        tuned.save_pretrained(folder / f"source{seed}")


def compare(python: Path, work: Path, architecture: str, method: str, values: dict[str, Any]) -> None:
    """One line: how far the two merges are apart."""
    name = f"{architecture}, {method}"
    models = [{"model": str(work / architecture / f"source{seed}"), "parameters": values} for seed in range(2)]
    config: dict[str, Any] = {"merge_method": method, "models": models, "dtype": "float32"}
    if method != "linear":
        config["base_model"] = str(work / architecture / "base")
    short = name.replace(", ", "-")
    (work / "configs.json").write_text(json.dumps({short: config}))
    run = subprocess.run(
        [python, "-c", RUN, work / "configs.json", work / "theirs"], capture_output=True, text=True, check=False
    )
    if run.returncode:
        print(f"{name:38} not merged by mergekit: {run.stderr.strip().splitlines()[-1][:150]}", flush=True)
        return
    ours = load(build_model(from_mergekit(json.dumps(config)).recipe, work / "ours" / short, progress=False))
    print_difference(name, ours, load(work / "theirs" / short))


if __name__ == "__main__":
    main()
