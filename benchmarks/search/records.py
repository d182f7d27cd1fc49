"""Runs and their results: one JSON line for each run, with held-out scores of the best candidate at
every cost it passed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lab import SEARCH, Lab
from methods import Method, Point

from hf_evomerge import Scores

Record = dict[str, Any]
Key = tuple[str, int, str, int]


def run(lab: Lab, name: str, method: Method, budget: int, work: Path) -> Record:
    """Run a method once and measure what it found."""
    begin = time.perf_counter()
    processor = time.process_time()
    points = method.run(
        lab, budget, lab.draw, work / f"{lab.problem}-{lab.draw}" / f"{name}-{budget}"
    )
    searched = time.perf_counter() - begin
    processor = time.process_time() - processor
    marks, held_out = measure(lab, points, budget)
    best = max(points, key=lambda point: point.fitness)
    return {
        "problem": lab.problem,
        "draw": lab.draw,
        "method": name,
        "budget": budget,
        "examples": len(lab.examples["search"]),
        "spent": round(points[-1].cost, 2),
        "marks": marks,
        "own": {task: _summary(lab.scores(best.target, task)) for task in lab.own},
        **({"held_out": _each(held_out)} if lab.paired else {}),
        "seconds": round(searched),
        "cpu": round(processor),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {
            package: version(package) for package in ("hf-evomerge", "torch", "transformers", "cma")
        },
    }


def measure(lab: Lab, points: Sequence[Point], budget: int) -> tuple[list[Record], Scores]:
    """The best by search score within each cost: its score, and held-out ones, which are given
    whole for the last."""
    marks = list[Record]()
    known = dict[int, Scores]()
    for cost in sorted({cost for cost in lab.costs if cost < budget} | {budget}):
        within = [i for i, point in enumerate(points) if point.cost <= cost + 1e-6]
        if within:
            best = max(within, key=lambda i: points[i].fitness)
            if best not in known:
                known[best] = lab.scores(points[best].target, "test")
            marks.append(
                {
                    "cost": cost,
                    "search": {"loglik": round(points[best].fitness, 4)},
                    "test": _summary(known[best]),
                }
            )
    return marks, known[best]


def _each(scores: Scores) -> Record:
    """The scores of every example."""
    right = scores.correct if scores.correct is not None else []
    return {
        "right": "".join(str(int(each)) for each in right),
        "loglik": [round(float(each), 3) for each in scores.values],
    }


def _summary(scores: Scores) -> Record:
    return {
        "accuracy": round(scores.accuracy or 0.0, 4),
        "loglik": round(float(scores.values.mean()), 4),
    }


def key(record: Record) -> Key:
    """What names a run."""
    return record["problem"], record["draw"], record["method"], record["budget"]


def examples(record: Record) -> int:
    """How many search examples a run had."""
    return int(record.get("examples", SEARCH))


def read(file: Path) -> list[Record]:
    """All results; the last of a run counts."""
    if not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    return list({key(row): row for row in rows}.values())


def append(file: Path, record: Record) -> None:
    """Keep a result."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")
