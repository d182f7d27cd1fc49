"""Every control beside the merge, on every pair, by one search file: the default's.

A cell is a pair, a number of search examples and a draw of them. Each cell is one search with
`optimize: quick`, as `init` writes it, and every baseline of `compare` that the pair can have.
Validation has 32 problems, the test split 200 (the encoder's 140); 50 problems of each parent's own
skill, 8 of each of a dozen's, say what is kept of it. A pair's weights are merged; `PAIR:dfs` and
`PAIR:hybrid` search paths, and weights then paths, beside the controls that differ by space.

    python benchmarks/pairs train --work /tmp/pairs --gguf SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/real_models.py train --work /tmp/real --gguf SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/many_adapters.py train --work /tmp/dozen --gguf SmolLM2-135M.gguf
    python benchmarks/evidence.py run --pairs trips demo --examples 16 --draws 1 2 3
    python benchmarks/evidence.py run --pairs travel:dfs --examples 16 --draws 1
    python benchmarks/evidence.py table --into benchmarks/pages/evidence.md

Results are appended as they come, one JSON line a cell; what is there is not run again. A cell of
SmolLM2 takes 10 to 40 minutes on one core. `published.py` says where its models come from.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "search"))
sys.path.insert(0, str(Path(__file__).parent / "pairs"))

import many_adapters
from cells import TEST, VALIDATION, Problem, command_line, split
from lab import demo
from pairs.__main__ import OWN, PAIRS, make_lab, problems
from published import classifiers, encoder
from real_models import MODELS, real_pair

from hf_evomerge import SearchConfig, run_search
from hf_evomerge.fitness.comparison import Comparison, compare
from hf_evomerge.fitness.scores import Scores
from hf_evomerge.search.results.table import Row
from hf_evomerge.search.spaces.parameter import SUM

RESULTS = Path(__file__).parent / "results" / "search" / "evidence.jsonl"
OWN_OF_DOZEN = 8
BASELINES = {
    "ps": ["average", "prompt", "alone", "noise", "lora", "merge+lora"],
    "dfs": ["average", "alone", "noise"],
    "hybrid": ["average", "alone", "noise"],
}
SPACES = {
    "ps": "weights are merged",
    "dfs": "a path through the layers",
    "hybrid": "weights, then a path",
}
MERGE = "merge"  # the stage that won: ps, or dfs
ROWS = {
    "base": "base",
    "source": "best parent",
    "average": "plain average",
    SUM: SUM,
    "prompt": "the same examples in the prompt",
    "alone": "one parent alone, rescaled",
    "noise": "noise in place of the parents",
    "lora": "LoRA, best start and rate",
    "together": "LoRA beside the merge",
    MERGE: "**merge**",
}


def adapters(name: str, work: Path, count: int, draw: int) -> Problem:
    """One of `benchmarks/pairs`: two adapters of SmolLM2-135M."""
    pair = importlib.import_module(name)
    lab = make_lab(work / "pairs", name, 0, draw)
    held = lab.examples["test"]
    searched = problems(
        pair, pair.TASK, count + VALIDATION, draw, frozenset(each.prompt for each in held)
    )
    examples = {**lab.examples, **split(searched, count), "test": held[:TEST]}
    return Problem(dict(lab.settings), examples)


def whole_models(model: str, work: Path, count: int, draw: int) -> Problem:
    """The pair of `benchmarks/real_models.py`: two whole fine-tunes of a base."""
    lab = real_pair(work / model, MODELS[model], count + VALIDATION, draw)
    examples = {**lab.examples, **split(lab.examples["search"], count)}
    return Problem({**lab.settings, "output": {"dtype": "float32"}}, examples)


def specialists(family: str, work: Path, count: int, draw: int) -> Problem:
    """The demo's specialists: the family that ships, or one of another seed."""
    place = family if family == "shipped" else str(work / family)
    lab = demo(place, draw, count + VALIDATION)
    own = {name: lab.examples[name][:OWN] for name in lab.own}
    test = lab.examples["test"][:TEST]
    return Problem(
        dict(lab.settings), {**split(lab.examples["search"], count), "test": test, **own}
    )


def dozen(task: str, work: Path, count: int, draw: int) -> Problem:
    """One of the tasks of `benchmarks/many_adapters.py`: twelve adapters of SmolLM2-135M.

    No parent is searched alone: that is a search for each of the twelve, and a search file can name
    fewer only where fewer are merged. LoRA builds every parent whole: 4 GB in the study's folder.
    """
    lab = many_adapters.make_lab(work / "dozen", task, 0, draw)
    held = many_adapters.problems(f"task-{task}", TEST, 0)
    seen = frozenset(each.prompt for each in held)
    searched = many_adapters.problems(f"task-{task}", count + VALIDATION, draw, seen)
    own = {name: many_adapters.problems(name, OWN_OF_DOZEN, 0) for name in many_adapters.COURSES}
    examples = {**split(searched, count), "test": held, **own}
    return Problem(dict(lab.settings), examples, without=("alone",))


MAKERS: dict[str, tuple[Callable[[str, Path, int, int], Problem], str]] = {
    "demo": (specialists, "shipped"),
    "family-1": (specialists, "family-1"),
    "family-2": (specialists, "family-2"),
    # seeds 1 and 2 on another machine, whose sums round otherwise: other models
    "family-1b": (specialists, "family-1b"),
    "family-2b": (specialists, "family-2b"),
    **{name: (adapters, name) for name in PAIRS},
    "smollm2": (whole_models, "smollm2"),
    "gemma": (whole_models, "gemma"),
    **{f"dozen-{task}": (dozen, task) for task in many_adapters.PARTS},
    "reactions": (classifiers, "schneider_b"),
    "encoder": (encoder, "encoder"),
}
WITHOUT_PATHS = ("reactions", "encoder")  # encoders, whose layers no search reorders
NAMES = [
    name if space == "ps" else f"{name}:{space}"
    for name in MAKERS
    for space in BASELINES
    if space == "ps" or name not in WITHOUT_PATHS
]


def run_cell(name: str, count: int, draw: int, work: Path) -> dict[str, Any]:
    """Search with all baselines, and return the line of the results."""
    pair, _, space = name.partition(":")
    make, which = MAKERS[pair]
    problem = make(which, work, count, draw)
    own = [name for name in problem.examples if name not in ("search", "validation", "test")]
    baselines = [each for each in BASELINES[space or "ps"] if each not in problem.without]
    config = SearchConfig.model_validate(
        {
            **problem.settings,
            "space": space or "ps",
            "optimize": "quick",
            "compute": {"seed": draw},
            "compare": {
                "baselines": baselines,
                # the examples are given below, and no file is read
                "retain": {each: {"jsonl": f"{each}.jsonl"} for each in own},
            },
        }
    )
    examples = {
        f"retain:{each}" if each in own else each: found for each, found in problem.examples.items()
    }
    begin = time.perf_counter()
    processor = time.process_time()
    folder = work / "evidence" / f"{name.replace(':', '-')}-{count}-{draw}"
    result = run_search(config, folder, examples=examples, build=False)
    return {
        "pair": name,
        "examples": count,
        "draw": draw,
        "test": result.examples,
        "rows": [_line(row) for row in result.rows],
        "verdict": result.verdict,
        "seconds": round(time.perf_counter() - begin),
        "cpu": round(time.process_time() - processor),
    }


def _line(row: Row) -> dict[str, Any]:
    correct = row.scores.correct
    return {
        "stage": SUM if row.model == SUM else row.stage,
        "model": row.model,
        "right": "" if correct is None else "".join(str(int(each)) for each in correct),
        "values": [round(float(value), 3) for value in row.scores.values],
        "kept": {name: scores.accuracy for name, scores in row.retained.items()},
        "evaluations": row.evaluations,
        "seconds": round(row.seconds, 1),
        "winner": row.winner,
    }


def _scores(row: dict[str, Any]) -> Scores:
    return Scores(row["values"], correct=[each == "1" for each in row["right"]] or None)


def _cell(lines: Sequence[dict[str, Any]], stage: str) -> str:
    """Accuracy and log-likelihood of a row, over the draws, and the merge's lead over it."""
    found = [row for line in lines if (row := _best(line, stage)) is not None]
    if not found:
        return ""
    rights = [sum(map(int, row["right"])) / len(row["right"]) for row in found]
    values = [sum(row["values"]) / len(row["values"]) for row in found]
    text = f"{_mean(rights):.3f}; {_mean(values):.2f}"
    kept = [sum(row["kept"].values()) / len(row["kept"]) for row in found if row["kept"]]
    text += f"; keeps {_mean(kept):.2f}" if kept else ""
    if stage == MERGE:
        return text
    above, below = _apart(_leads(lines, MERGE, stage))
    verdict = f"{above} above, {below} below" if above or below else "level"
    return f"{text} ({verdict})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """One table a number of examples and space: a column for each pair, a row for each kind of
    model.

    A cell has the accuracy, the log-likelihood and the share of the parents' own problems that is
    still solved, as means over draws. In brackets stands in how many draws the merge is above or
    below with an interval of 95 % that excludes 0; "level" where in none.
    """
    texts = []
    for count in sorted({line["examples"] for line in lines}):
        for space, searched in SPACES.items():
            there = [
                line
                for line in lines
                if line["examples"] == count and (line["pair"].partition(":")[2] or "ps") == space
            ]
            if there:
                texts.append(f"{count} search examples, {searched}:\n\n{_table(there)}")
    texts.append(_counts([line for line in lines if ":" not in line["pair"]]))
    return "\n\n".join(texts)


def _counts(lines: Sequence[dict[str, Any]]) -> str:
    """In how many cells the merge, and a LoRA beside it, are above each row, level, and below."""
    heads = {MERGE: "merge", "together": "LoRA beside the merge"}
    rows = [["", *heads.values()]]
    for stage, title in ROWS.items():
        if stage in heads:
            continue
        cells = list[str]()
        for head in heads:
            leads = _leads(lines, head, stage)
            above, below = _apart(leads)
            cells.append(f"{above}, {len(leads) - above - below}, {below}" if leads else "")
        rows.append([title, *cells])
    said = f"In how many of the {len(lines)} cells of weights it is above a row, level, below:"
    return f"{said}\n\n{_markdown(rows)}"


def _leads(lines: Sequence[dict[str, Any]], head: str, stage: str) -> list[Comparison]:
    """The lead of a row over the best of a kind, in each cell that has both."""
    leads = []
    for line in lines:
        first, other = (_best(line, kind) for kind in (head, stage))
        if first is not None and other is not None:
            lead = compare(_scores(first), _scores(other), "accuracy")
            assert lead is not None  # both were scored, on many examples
            leads.append(lead)
    return leads


def _apart(leads: Sequence[Comparison]) -> tuple[int, int]:
    """How many leads are above 0, and below, with their intervals."""
    return sum(lead.low > 0 for lead in leads), sum(lead.high < 0 for lead in leads)


def _best(line: dict[str, Any], stage: str) -> dict[str, Any] | None:
    """The best row of a kind, by log-likelihood; of the merge's the winner."""
    rows = [
        row for row in line["rows"] if (row["winner"] if stage == MERGE else row["stage"] == stage)
    ]
    return max(rows, key=lambda row: _scores(row).mean or 0.0, default=None)


def _table(lines: Sequence[dict[str, Any]]) -> str:
    """The table of the cells of one number of examples and one space."""
    names = [name for name in NAMES if any(line["pair"] == name for line in lines)]
    of_pair = {name: [line for line in lines if line["pair"] == name] for name in names}
    rows = [["", *(name.partition(":")[0] for name in names)]]
    for stage, title in ROWS.items():
        cells = [_cell(of_pair[name], stage) for name in names]
        if any(cells):
            rows.append([title, *cells])
    rows.append(["draws", *(str(len(of_pair[name])) for name in names)])
    # a cell that was stopped and went on has no time
    seconds = (_mean([line["cpu"] for line in of_pair[name] if "cpu" in line]) for name in names)
    rows.append(["processor seconds, mean", *(f"{each:.0f}" for each in seconds)])
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    rule = f"|{' --- |' * len(rows[0])}"
    return "\n".join([head, rule, *body])


def main() -> None:
    """Command line."""
    command_line(
        __doc__,
        results=RESULTS,
        pairs=NAMES,
        counts=[16, 128],
        run_cell=run_cell,
        told=lambda line: "\n".join(line["verdict"]),
        table=table,
    )


if __name__ == "__main__":
    main()
