"""Measures what a gradient step of a search costs beside a score of the same examples: CPU time,
and memory at its peak.

Makes a Llama of SmolLM2-135M's shape (30 layers, 576 wide, embeddings tied) or of 1.3 billion
parameters (25 layers, 2048 wide) with random weights, two fine-tunes of it, and two LoRA adapters
of rank 16 on all linear layers. Scores one point of each search space: merge weights (one number
per tensor) of the fine-tunes, of the adapters unmerged (on a quantised base too) and merged, gates
(each slot of both sources), and gates of two terms a hop; then all with the gradient of every
number. Each line is a process of its own. Memory is resident, with the models: "at rest" is what is
there after the first score. CPU time is that of a second score and a second step, in seconds and in
scores of the plain base, the first line. "Counted" is what a search counts for the gradient, in
scores.

    python benchmarks/gradient_memory.py --work /tmp/gradient-memory
    python benchmarks/gradient_memory.py --work /tmp/gradient-memory --spaces adapters --shape 1.3B
    --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "135M": {
        **{
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "vocab_size": 49152,
        },
        **{"num_attention_heads": 9, "num_key_value_heads": 3},
    },
    "1.3B": {
        **{
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 25,
            "vocab_size": 32000,
        },
        **{"num_attention_heads": 16, "num_key_value_heads": 16},
    },
}
PLAIN = "the base, plain"
SPACES: dict[str, dict[str, Any]] = {
    PLAIN: {"space": "ps", "compute": {"unmerged": False}},
    "weights": {"space": "ps"},
    "adapters": {"space": "ps"},
    "adapters, 8 bits": {"space": "ps", "compute": {"quantization": "8bit"}},
    "adapters, 4 bits": {"space": "ps", "compute": {"quantization": "4bit"}},
    "adapters, core space": {
        "space": "ps",
        "merge": {"method": "ties", "core_space": True, "groups": "tensor"},
    },
    "adapters, merged": {"space": "ps", "compute": {"unmerged": False}},
    "gates": {"space": "dfs"},
    "gates, two terms": {"space": "dfs", "path": {"kind": "gates", "terms": "all"}},
}
WORDS = [f"w{number}" for number in range(200)]


def make_family(folder: Path, dtype: str, sizes: dict[str, int], tuned: Sequence[str]) -> None:
    """Save the base, its fine-tunes and its adapters, unless they are there."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if all((folder / name).exists() for name in ("lora-c", *tuned)):
        return
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            **sizes, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2
        )
    )
    vocabulary = {
        word: index for index, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])
    }
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for name in ("base", *tuned):
        base.load_state_dict(start)
        with torch.no_grad():
            for parameter in base.parameters() if name != "base" else ():
                parameter.add_(0.002 * torch.randn_like(parameter))
        base.to(getattr(torch, dtype)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        base.float()
    for name in ("lora-a", "lora-b", "lora-c"):
        config = LoraConfig(
            r=16,
            lora_alpha=32,
            target_modules="all-linear",
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(base, config)
        adapted.save_pretrained(folder / name)
        base = adapted.unload()


def resident() -> float:
    """Resident memory of this process, in MB."""
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1000


def measured(work: Callable[[], object]) -> dict[str, float]:
    """CPU seconds of some work, and the memory at its peak."""
    peak = [resident()]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    cpu = time.process_time()
    work()
    cpu = time.process_time() - cpu
    stop.set()
    watcher.join()
    return {"cpu": cpu, "memory": peak[0]}


def child(arguments: argparse.Namespace, name: str, checkpointing: bool) -> dict[str, Any]:
    """Score a point of a space, without and with its gradient."""
    import numpy as np

    from hf_evomerge.fitness import Example
    from hf_evomerge.search.evaluation.evaluator import Evaluator
    from hf_evomerge.search.file.config import SearchConfig
    from hf_evomerge.search.spaces.space import make_space

    rng = random.Random(0)
    examples = [
        Example(
            " ".join(rng.choices(WORDS, k=arguments.tokens - 8)),
            " ".join(rng.choices(WORDS, k=8)),
            id=str(number),
        )
        for number in range(arguments.examples)
    ]
    folder = arguments.work / f"{arguments.shape}-{arguments.dtype}"
    sections = {
        "merge": {"groups": "tensor"},
        "path": {"kind": "gates", "repetitions": 1},
        "optimize": [{"by": "gradient"}],
    }
    compute = {"gradient_checkpointing": checkpointing, **SPACES[name].get("compute", {})}
    more = {"fitness": {"task": "likelihood", "separator": " "}}
    base = {"model": str(folder / "base")}
    adapted = [{**base, "adapter": str(folder / f"lora-{each}")} for each in "ab"]
    sources = {
        "sources": adapted
        if name == PLAIN or "adapters" in name
        else [{"model": str(folder / each)} for each in "ab"],
        "base": base,
    }
    config = SearchConfig.model_validate(
        {**sources, **sections, **more, **SPACES[name], "compute": compute}
    )
    evaluator = Evaluator(config, examples={"search": examples})
    space = make_space(config, config.stages[0], evaluator.sources.summary)
    genome = space.start().mean
    everything = np.ones(genome.size, dtype=np.bool_)
    recipe = config.base if name == PLAIN else space.decode(genome)
    slopes = space.slopes(genome, everything)

    def score(*how: Any) -> None:
        scores = evaluator.evaluate(recipe, "search", None, *how)
        if scores.error is not None:
            raise SystemExit(scores.error)

    score()
    found: dict[str, Any] = {
        "rest": resident(),
        "price": space.price(everything),
        "score": measured(score),
    }
    if name == PLAIN:
        return found
    first = measured(lambda: score(slopes))  # before that, what is freed has not been there
    again = measured(lambda: score(slopes))  # and the second does nothing for the first time
    return {**found, "step": {"memory": first["memory"], "cpu": again["cpu"]}}


def main() -> None:
    """Measure every space, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the models (2 GB in float32)"
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--shape", default="135M", choices=SHAPES, help="of the models")
    parser.add_argument(
        "--spaces",
        nargs="+",
        choices=SPACES,
        metavar="NAME",
        help=f"lines; of {', '.join(list(SPACES)[1:])}",
    )
    parser.add_argument("--examples", type=int, default=16, help="of a step")
    parser.add_argument("--tokens", type=int, default=128, help="of each example")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments, arguments.child[0], arguments.child[1] == "anew")))
        return
    names = [name for name in arguments.spaces or SPACES if name != PLAIN]
    tuned = [] if all("adapters" in name for name in names) else ["a", "b"]
    make_family(
        arguments.work / f"{arguments.shape}-{arguments.dtype}",
        arguments.dtype,
        SHAPES[arguments.shape],
        tuned,
    )
    print(
        (
            "| gradient of | activations | at rest | a score | a step | CPU of a score | of a "
            "step | counted |\n"
        )
        + "| --- " * 8
        + "|"
    )
    plain = 0.0
    for name in (PLAIN, *names):
        for how in ("kept", "anew") if name != PLAIN else ("",):
            command = [sys.executable, *sys.argv, "--child", name, how]
            found = json.loads(
                subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True
                ).stdout.splitlines()[-1]
            )
            done = [found["score"], *([found["step"]] if "step" in found else [])]
            plain = plain or found["score"]["cpu"]
            memory = [
                f"{value / 1000:.2f} GB"
                for value in (found["rest"], *(each["memory"] for each in done))
            ]
            times = [f"{each['cpu']:.2f} s, {each['cpu'] / plain:.2f}" for each in done]
            cells = [
                name,
                how,
                *memory,
                *[""] * (2 - len(done)),
                *times,
                *[""] * (2 - len(done)),
                f"{found['price']:g}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
