"""A pair of fine-tunes that nobody here made: BERTs of chemical reactions, and searches for their
merge with few labels.

PyPI's `rxnfp` 0.1.0 (MIT; Schwaller et al., Nature Machine Intelligence 2021) ships three encoders
of one shape: the base, and fine-tunes for 792 and for the 50 classes of Schneider et al. The
reactions are SynRXN's (https://github.com/TieuLongPhan/SynRXN, CC BY 4.0):
`Data/classification/schneider_b.csv.gz` and `uspto_50k_u.csv.gz`, at commit 895c04f, in one folder.
Both are written in another form than the 50-class model was trained on. Needs the extra `bench`.

    pip download --no-deps rxnfp==0.1.0
    python benchmarks/reactions.py convert --wheel rxnfp-0.1.0-py3-none-any.whl --work reactions
    python benchmarks/reactions.py run --work reactions --data FOLDER --dry-run
    python benchmarks/reactions.py run --work reactions --data FOLDER --examples 16 64 128 \\
        --draws 1 2 3
    python benchmarks/reactions.py nearest --work reactions --data FOLDER
    python benchmarks/reactions.py table --into benchmarks/pages/reactions.md

`convert` reads the torch files of 2020 without running code of theirs, and writes safetensors. Only
the 50-class model came with a head: all three have that one here, so merges move encoders alone.
Costs are in scores of 128 reactions, in bfloat16.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import random
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "search"))

import torch
from lab import WEIGHT, Lab
from methods import TENSOR, Method, Point, Run, average, base, known, lora, ours, parent
from records import Record, append, key, read, run
from report import leads_table, sizes_table, table, write_into

from hf_evomerge import Example, MergePart, Recipe

MODELS = {"base": "bert_pretrained", "classes-792": "bert_ft", "classes-50": "bert_ft_10k_25s"}
TOKEN = r"%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|[NOSPFIbcnosp|().=#\-+\\/:~@?*$]|>>?|%[0-9]{2}|[0-9]"
CODES = """
    1.2.1 1.2.4 1.2.5 1.3.6 1.3.7 1.3.8 1.6.2 1.6.4 1.6.8 1.7.4 1.7.6 1.7.7 1.7.9 1.8.5 10.1.1 10.1.2 10.1.5 10.4.2 2.1.1
    2.1.2 2.1.7 2.2.3 2.3.1 2.6.1 2.6.3 2.7.1 2.7.2 3.1.1 3.1.5 3.1.6 3.3.1 3.4.1 5.1.1 6.1.1 6.1.3 6.1.5 6.2.1 6.2.2
    6.2.3 6.3.1 6.3.7 7.1.1 7.2.1 7.3.1 7.9.2 8.1.4 8.1.5 8.2.1 9.1.6 9.3.1
""".split()  # noqa: E501, SIM905
"""The 50 classes in the order of the head; the number before the first point is the superclass.
None is of superclass 4."""
SETS = {"schneider_b": CODES, "uspto_50k_u": [code.split(".")[0] for code in CODES]}
"""What each of the head's labels is called in each set; labels of one name are one class."""
HELD_OUT = 800
REFERENCES = 1600
LONGEST = 256
FULL = 128
RATES = (3e-4, 1e-3, 1e-4)
MIXES = ((1.0, 0.05), (1.0, 0.1), (1.0, 0.2), (0.9, 0.1), (0.8, 0.2))
COARSE = {"groups": 3}


def mix(*weights: Any) -> Any:
    """Task arithmetic with a weight for each parent."""

    def make(lab: Lab) -> Recipe:
        parameters: list[Any] = [{"weight": weight} for weight in weights]
        return lab.evaluator.config.recipe(
            merge=MergePart(method="task_arithmetic", parameters=parameters)
        )

    return make


def from_parent(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
    """The same merges searched from the 50-class parent, which takes the base's place; the base is
    a source of weight 0."""

    def back(recipe: Recipe) -> Any:
        other, ancestor = (each["weight"] for each in recipe.merge.parameters)
        return mix(
            {key: 1.0 - other.get(key, 0.0) - ancestor.get(key, 0.0) for key in other | ancestor},
            other,
        )

    sources = lab.settings["sources"]
    moved = {"sources": [sources[1], lab.settings["base"]], "base": sources[0]}
    weight = {"low": -1.25, "high": 1.25, "start": 0.0}
    search = ours(
        "ps", "gradient", merge={**TENSOR, "parameters": {"weight": weight}}, batch=8, **moved
    )
    return [
        Point(point.cost, point.fitness, back(point.target)(lab))
        for point in search(lab, budget, seed, folder)
    ]


def readout(rate: float, *, temperature: bool) -> Run:
    """The 50-class parent with a temperature, or with its head trained: 100 steps of Adam on all
    search examples."""

    def run(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
        model = lab.copy_of(parent(0)(lab))
        examples = lab.examples["search"]
        tokenizer = lab.evaluator.sources[0].tokenizer()
        names = model.config.id2label
        with torch.no_grad():
            inputs = (tokenizer(example.prompt, return_tensors="pt") for example in examples)
            features = torch.cat(
                [model.base_model(**each).pooler_output for each in inputs]
            ).float()  # (B, hidden)
        right = torch.tensor(
            [[names[i] == example.answer for i in range(len(names))] for example in examples]
        )
        weight, bias = (
            each.detach().float().requires_grad_() for each in model.classifier.parameters()
        )
        scale = torch.zeros((), requires_grad=True)
        optimizer = torch.optim.Adam([scale] if temperature else [weight, bias], lr=rate)
        for _ in range(100):
            logits = (features @ weight.T + bias) * scale.exp()
            loss = logits.logsumexp(1) - logits.masked_fill(~right, -torch.inf).logsumexp(1)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        with torch.no_grad():
            model.classifier.weight.copy_(weight * scale.exp())
            model.classifier.bias.copy_(bias * scale.exp())
        return [Point(2, float(lab.scores(model, "search").values.mean()), model)]

    return run


METHODS: dict[str, Method] = {
    "base": Method("base, 50-class head", (1,), 1, known(base)),
    "parent-0": Method("50-class parent", (1,), 1, known(parent(0))),
    "parent-1": Method("792-class parent, 50-class head", (1,), 1, known(parent(1))),
    "average": Method("plain average", (1,), 1, known(average)),
    "temperature": Method(
        "50-class parent with a temperature", (2,), 1, readout(0.02, temperature=True)
    ),
    "default": Method(
        "PS, gradient, as a search does it by default", (9,), 2, ours("ps", "gradient")
    ),
    "mixes": Method(
        "best of 5 task arithmetics", (5,), 2, known(*(mix(*weights) for weights in MIXES))
    ),
    "head-0": Method("head alone, rate 0.001", (2,), 2, readout(1e-3, temperature=False)),
    "head-1": Method("head alone, rate 0.0001", (2,), 3, readout(1e-4, temperature=False)),
    "parent-tensor": Method(
        "PS, gradient, per tensor, from the 50-class parent", (9,), 2, from_parent
    ),
    "lora-0": Method(
        f"LoRA from the 50-class parent, rate {RATES[0]:g}", (9,), 2, lora(parent(0), 0)
    ),
    "lora-1": Method(
        f"LoRA from the 50-class parent, rate {RATES[1]:g}", (9,), 3, lora(parent(0), 1)
    ),
    "tensor": Method(
        "PS, gradient, per tensor, from the average",
        (9,),
        4,
        ours("ps", "gradient", batch=8, merge=TENSOR),
    ),
    "cma": Method("PS, CMA-ES, groups of 4 blocks", (9,), 5, ours("ps", merge=COARSE)),
    "random": Method(
        "random search, groups of 4 blocks", (9,), 5, ours("ps", "random", merge=COARSE)
    ),
    "lora-2": Method(
        f"LoRA from the 50-class parent, rate {RATES[2]:g}", (9,), 5, lora(parent(0), 2)
    ),
}
KNOWN = tuple(name for name, method in METHODS.items() if method.budgets == (1,))


def convert(wheel: Path, work: Path) -> None:
    """Write base and parents for each set as safetensors, with a tokenizer, their labels and the
    50-class head."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    with zipfile.ZipFile(wheel) as archive:
        files = {name: f"rxnfp/models/transformers/{folder}" for name, folder in MODELS.items()}
        words = archive.read(f"{files['base']}/vocab.txt").decode().splitlines()
        raw = {
            name: json.loads(archive.read(f"{folder}/config.json"))
            for name, folder in files.items()
        }
        weights = {
            name: io.BytesIO(archive.read(f"{folder}/pytorch_model.bin"))
            for name, folder in files.items()
        }
    vocabulary = {word: number for number, word in enumerate(words)}
    splitter = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    splitter.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN), "removed", invert=True)
    splitter.post_processor = processors.BertProcessing(
        *((word, vocabulary[word]) for word in ("[SEP]", "[CLS]"))
    )
    special = {
        f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=splitter, model_max_length=512, **special)
    tensors = {
        name: torch.load(file, map_location="cpu", weights_only=True)
        for name, file in weights.items()
    }
    head = {
        name: tensor
        for name, tensor in tensors["classes-50"].items()
        if name.startswith("classifier.")
    }
    for data, names in SETS.items():
        labels = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
        }
        for name, found in tensors.items():
            body = (
                found
                if name != "classes-792"
                else {f"bert.{each}": tensor for each, tensor in found.items()}
            )
            shape = {
                each: raw[name][each]
                for each in BertConfig().to_dict()
                if each in raw[name] and each not in labels
            }
            model = BertForSequenceClassification(BertConfig(**shape, **labels))
            model.load_state_dict(
                {each: tensor for each, tensor in body.items() if each.startswith("bert.")} | head
            )
            model.save_pretrained(work / data / name)
            tokenizer.save_pretrained(work / data / name)


def read_set(folder: Path, data: str) -> list[Example]:
    """The test split's reactions in an order of their own, without long ones and without classes
    that the head has not."""
    with gzip.open(folder / f"{data}.csv.gz", "rt", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] == "test"]
    names = CODES if data == "schneider_b" else [str(number) for number in range(1, 11)]
    found = [Example(row["rxn"], names[int(row["label"])], row["r_id"]) for row in rows]
    found = [
        each
        for each in found
        if each.answer in SETS[data] and len(re.findall(TOKEN, each.prompt)) + 2 <= LONGEST
    ]
    random.Random(0).shuffle(found)
    return found


def make_lab(work: Path, data: str, reactions: list[Example], count: int, draw: int) -> Lab:
    """The task, with so many search examples of one of their draws."""
    searched = random.Random(draw).sample(reactions[HELD_OUT + REFERENCES :], FULL)
    settings = {
        "sources": [{"model": str(work / data / name)} for name in ("classes-50", "classes-792")],
        "base": {"model": str(work / data / "base")},
        "fitness": {"task": "classification"},
        "compare": {"baselines": ()},
        "output": {"dtype": "bfloat16"},
    }
    examples = {"search": searched[:count], "test": reactions[:HELD_OUT]}
    sections: dict[str, dict[str, Any]] = {"merge": {"parameters": {"weight": WEIGHT}}}
    return Lab(
        f"{data}, {count}",
        draw,
        settings,
        sections,
        examples,
        RATES,
        batch=8,
        costs=(),
        paired=True,
    )


def run_missing(arguments: argparse.Namespace) -> None:
    """Run every method on every set and number of examples, the most telling first; what needs no
    search, once a set."""
    there = {key(record) for record in read(arguments.results)}
    sets = {data: read_set(arguments.data, data) for data in arguments.sets}
    jobs = [
        (draw, METHODS[name].stage, data, count, name)
        for name in arguments.methods
        for data in sets
        for draw in (arguments.draws[:1] if name in KNOWN else arguments.draws)
        for count in ([FULL] if name in KNOWN else arguments.examples)
    ]
    labs: dict[tuple[str, int, int], Lab] = {}
    for draw, _, data, count, name in sorted(jobs):
        # in scores of these
        budget = METHODS[name].budgets[0] * FULL // count if METHODS[name].budgets == (9,) else 1
        if (f"{data}, {count}", draw, name, budget) in there:
            continue
        title = f"{data}, {count}, draw {draw}: {METHODS[name].label} ({name}), {budget} scores"
        if arguments.dry_run:
            print(title)
            continue
        lab = labs.setdefault(
            (data, count, draw), make_lab(arguments.work, data, sets[data], count, draw)
        )
        record = run(lab, name, METHODS[name], budget, arguments.work / "studies")
        append(arguments.results, record)
        test = record["marks"][-1]["test"]
        print(
            f"{title}: {test['accuracy']:.3f} {test['loglik']:.3f}, {record['cpu']} CPU-seconds",
            flush=True,
        )


def nearest(arguments: argparse.Namespace) -> None:
    """Class of the nearest of some labelled reactions, by the cosine of [CLS], for base, parents,
    average and mixes."""
    there = {key(record) for record in read(arguments.results)}
    reactions = read_set(arguments.data, "schneider_b")
    lab = make_lab(arguments.work, "schneider_b", reactions, FULL, 1)
    size = HELD_OUT + arguments.references
    targets = {
        "base": base,
        "50-class parent": parent(0),
        "792-class parent": parent(1),
        "plain average": average,
    }
    targets |= {f"task arithmetic, {one:g} and {other:g}": mix(one, other) for one, other in MIXES}
    tokenizer = lab.evaluator.sources[0].tokenizer()
    order = sorted(range(size), key=lambda i: len(reactions[i].prompt))
    for label, target in targets.items():
        names = {
            "problem": f"{arguments.references} labelled",
            "draw": 1,
            "method": label,
            "budget": 1,
        }
        if key(names) in there:
            continue
        body = lab.evaluator.models.model(target(lab)).base_model.eval()
        vectors = torch.empty(size, body.config.hidden_size)
        with torch.inference_mode():
            for rows in (order[start : start + 16] for start in range(0, size, 16)):
                inputs = tokenizer(
                    [reactions[i].prompt for i in rows], padding=True, return_tensors="pt"
                )
                vectors[rows] = torch.nn.functional.normalize(
                    body(**inputs).last_hidden_state[:, 0].float(), dim=1
                )
        closest = (vectors[:HELD_OUT] @ vectors[HELD_OUT:].T).argmax(1).tolist()
        right = [
            reactions[i].answer == reactions[HELD_OUT + j].answer for i, j in enumerate(closest)
        ]
        append(arguments.results, {**names, "right": "".join(str(int(each)) for each in right)})
        print(f"{label}: {sum(right) / HELD_OUT:.4f}", flush=True)


def tables(rows: list[Record]) -> str:
    """All results as Markdown: each set, then nearest neighbours."""
    text = list[str]()
    for data in SETS:
        mine = [row for row in rows if row["problem"].startswith(f"{data}, ")]
        fixed, searched = (
            [row for row in mine if (row["method"] in KNOWN) == here] for here in (True, False)
        )
        parts = {
            count: [r for r in searched if r["examples"] == count]
            for count in sorted({r["examples"] for r in searched})
        }
        for row in fixed:
            del row["marks"][-1]["search"]  # what needs no search has overfitted nothing
        text += [f"### `{data}`", table(fixed, METHODS), sizes_table(parts, METHODS)]
        for count, found in parts.items():
            everything = [{**row, "problem": f"{data}, {count}"} for row in fixed] + found
            text.append(f"{count} labelled reactions:")
            text += [
                leads_table(everything, METHODS, ["parent-0", "temperature"], what)
                for what in ("right", "loglik")
            ]
    near = [
        f"| {row['method']} | {row['right'].count('1') / HELD_OUT:.4f} |"
        for row in rows
        if "right" in row
    ]
    if near:
        text += [
            "### Nearest neighbours",
            "\n".join(["| nearest labelled reaction | accuracy |", "| --- | --- |", *near]),
        ]
    return "\n\n".join(text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    results = Path(__file__).parent / "results" / "reactions.jsonl"
    parser.add_argument("--results", type=Path, default=results, help="one JSON line per run")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("convert", help="write the three models as safetensors")
    making.add_argument("--wheel", type=Path, required=True, help="rxnfp's")
    running = commands.add_parser("run", help="run what is missing")
    running.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    running.add_argument(
        "--examples",
        type=int,
        nargs="+",
        default=[16, 64, FULL],
        help=f"search examples, at most {FULL}",
    )
    running.add_argument(
        "--draws", type=int, nargs="+", default=[1], help="draws of the search examples, seeds too"
    )
    running.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="NAME",
        help=", ".join(METHODS),
    )
    running.add_argument("--dry-run", action="store_true", help="print the runs")
    finding = commands.add_parser("nearest", help="nearest neighbours on [CLS], of `schneider_b`")
    finding.add_argument(
        "--references", type=int, default=400, help=f"labelled reactions, at most {REFERENCES}"
    )
    for command in (making, running, finding):
        command.add_argument(
            "--work", type=Path, required=True, help="folder of models and studies"
        )
        if command is not making:
            command.add_argument(
                "--data", type=Path, required=True, help="folder of SynRXN's files"
            )
    telling = commands.add_parser("table", help="print the results as Markdown")
    telling.add_argument(
        "--into", type=Path, help="a document to write them into, between the two comments"
    )
    arguments = parser.parse_args()
    if arguments.command == "convert":
        convert(arguments.wheel, arguments.work)
    elif arguments.command == "run":
        run_missing(arguments)
    elif arguments.command == "nearest":
        nearest(arguments)
    elif arguments.into:
        write_into(arguments.into, "reactions", tables(read(arguments.results)))
    else:
        print(tables(read(arguments.results)))


if __name__ == "__main__":
    main()
