"""Measures time and memory of merging two models of 7 billion parameters, and three adapters,
and of searching a merge of the adapters.

Writes two checkpoints of Llama-2-7B's shape in bfloat16 and three LoRA adapters of rank 16 of the
first, all of random numbers. Merges them with the command line, and searches a merge of the
adapters by gradient, on 8 examples of 60 tokens: what ``--dry-run`` says, wall and processor time,
and the largest memory of the process's own (mapped files are not counted).
Needs 42 GB of disk, which are free again at the end.

    python benchmarks/seven_billion.py --work /tmp/seven
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import string
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

SHAPES: dict[str, dict[str, int]] = {
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
    },
}
SHARD = 4 << 30
RANK = 16


def numbers(count: int, seed: int) -> torch.Tensor:
    """Random numbers: one block of them, again and again."""
    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(min(count, 1 << 24), generator=generator) * 0.02).bfloat16()
    return block.repeat(-(-count // block.numel()))[:count]


def write_model(folder: Path, config: LlamaConfig, seed: int) -> None:
    """Write the shards of a model that was never whole in memory."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    shard: dict[str, torch.Tensor] = {}
    parts: list[list[str]] = []

    def write() -> None:
        save_file(shard, folder / f"part-{len(parts)}.safetensors", metadata={"format": "pt"})
        parts.append(list(shard))
        shard.clear()

    for number, (name, shape) in enumerate(shapes.items()):
        shard[name] = numbers(shape.numel(), seed + number).view(shape)
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD:
            write()
    write()
    total = len(parts)
    places = {}
    for number, names in enumerate(parts):
        name = f"model-{number + 1:05}-of-{total:05}.safetensors"
        (folder / f"part-{number}.safetensors").rename(folder / name)
        places |= dict.fromkeys(names, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_adapter(folder: Path, base: Path, config: LlamaConfig, seed: int) -> None:
    """Write a LoRA adapter of every linear layer."""
    hidden = config.hidden_size
    middle = config.intermediate_size
    sizes = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    sizes |= {"mlp.gate_proj": (middle, hidden), "mlp.up_proj": (middle, hidden)}
    sizes["mlp.down_proj"] = (hidden, middle)
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for name, (rows, columns) in sizes.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            seed += 1
            tensors[f"{key}.lora_A.weight"] = numbers(RANK * columns, seed).view(RANK, columns)
            tensors[f"{key}.lora_B.weight"] = numbers(rows * RANK, -seed).view(rows, RANK)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": [name.rpartition(".")[2] for name in sizes],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def write_problems(folder: Path, work: Path) -> Path:
    """Write a tokenizer of letters for a model, and problems for it."""
    letters = string.ascii_lowercase + " "
    tokenizer = Tokenizer(WordLevel({letter: number for number, letter in enumerate(letters)}))
    tokenizer.pre_tokenizer = Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="z", pad_token="z"
    ).save_pretrained(folder)
    draw = random.Random(0)
    lines = []
    for _ in range(8):
        prompt, answer = ("".join(draw.choices(letters, k=count)) for count in (50, 10))
        lines.append(json.dumps({"prompt": prompt, "answer": answer}))
    file = work / "problems.jsonl"
    file.write_text("\n".join(lines))
    return file


def measured(*words: str) -> dict[str, Any]:
    """Run the program: what it said, seconds, and its own largest memory in GB."""
    command = [sys.executable, "-m", "hf_evomerge", *words]
    started = time.monotonic()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    private = [0.0]

    def watch() -> None:
        while child.returncode is None:
            try:
                text = Path(f"/proc/{child.pid}/status").read_text()
            except OSError:
                return
            found = re.search(r"RssAnon:\s+(\d+)", text)
            private[0] = max(private[0], float(found[1]) if found else 0.0)
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    thread.join()
    return {
        "command": " ".join(words),
        "status": child.returncode,
        "seconds": round(time.monotonic() - started, 1),
        "processor": round(usage.ru_utime + usage.ru_stime, 1),
        "private_gb": round(private[0] / 1e6, 2),
        "said": said.strip().splitlines(),
    }


def main() -> None:
    """Write, merge, print a line of JSON for each command, and remove what was written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="7B")
    parser.add_argument("--only", choices=["models", "adapters", "search"], help="one of the three")
    options = parser.parse_args()
    work: Path = options.work
    config = LlamaConfig(
        **SHAPES[options.shape],
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    try:
        for number, name in enumerate("ab"):
            started = time.monotonic()
            write_model(work / name, config, 1000 * number)
            print(json.dumps({"written": name, "seconds": round(time.monotonic() - started, 1)}))
        for number in range(3):
            write_adapter(work / f"lora-{number}", work / "a", config, 10_000 * (number + 1))
        models = {
            "sources": [{"model": str(work / name)} for name in "ab"],
            "merge": {"method": "linear", "parameters": [{"weight": 0.5}] * 2},
            "dtype": "bfloat16",
        }
        adapters = {
            "sources": [
                {"model": str(work / "a"), "adapter": str(work / f"lora-{n}")} for n in range(3)
            ],
            "base": {"model": str(work / "a")},
            "merge": {"method": "task_arithmetic", "parameters": [{"weight": 0.5}] * 3},
            "dtype": "bfloat16",
        }
        problems = write_problems(work / "a", work)
        search = {
            "space": "ps",
            "sources": adapters["sources"],
            "base": adapters["base"],
            "optimize": [{"by": "gradient", "evaluations": 8}],
            "fitness": {"task": "likelihood", "separator": ""},
            "data": {"search": {"jsonl": str(problems)}},
            "compare": {"baselines": []},
            "output": {"dtype": "bfloat16"},
        }
        for name, command, settings in (
            ("models", "merge", models),
            ("adapters", "merge", adapters),
            ("search", "search", search),
        ):
            if options.only not in (None, name):
                continue
            file = work / f"{name}.yaml"
            file.write_text(json.dumps(settings))
            out = str(work / f"out-{name}")
            for more in (("--dry-run",), ()):
                found = measured(command, str(file), "--out", out, *more)
                print(json.dumps({"load": os.getloadavg(), **found}), flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
