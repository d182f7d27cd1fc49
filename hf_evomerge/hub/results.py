"""A model's figures where the Hub looks for them: ``.eval_results/`` for benchmarks that it knows, the card for all others.

Only what was measured on a test split is published, and as a benchmark's figure only what was measured by lm_eval on all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry

EVAL_FOLDER = ".eval_results"
BENCHMARKS: dict[str, tuple[str, str]] = {
    "gpqa_diamond_cot_zeroshot": ("Idavidrein/gpqa", "gpqa_diamond"),
    "gpqa_diamond_zeroshot": ("Idavidrein/gpqa", "gpqa_diamond"),
    "gsm8k": ("openai/gsm8k", "gsm8k"),
    "gsm8k_cot": ("openai/gsm8k", "gsm8k"),
}
"""lm_eval's tasks that are all of a benchmark on the Hub: its data set, and what the task is called there."""


def card_results(study: Mapping[str, Any] | None) -> list[EvalResult]:
    """What stands in the card's metadata: the accuracy on the test split, unless it is a benchmark's.

    Args:
        study: The record of a search, as it is published.
    """
    from huggingface_hub import EvalResult

    found = _accuracy(study)
    if study is None or found is None or _benchmark(study) is not None:
        return []
    data = study["settings"]["data"].get("test", {})
    tasks = ", ".join(data.get("lm_eval") or [])
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=str(data.get("dataset") or "custom"),
            dataset_name=str(data.get("dataset") or data.get("jsonl") or tasks or "examples of the search"),
            dataset_revision=data.get("revision"),
            metric_type="accuracy",
            metric_name=f"accuracy on {study['results']['examples']} held-out problems",
            metric_value=round(found, 4),
        )
    ]


def benchmark_result(study: Mapping[str, Any] | None) -> EvalResultEntry | None:
    """The result of a benchmark that the Hub knows; None where the test split is not all of one, as lm_eval scores it."""
    from huggingface_hub import EvalResultEntry

    found, name = _accuracy(study), None if study is None else _benchmark(study)
    if study is None or found is None or name is None:
        return None
    dataset, task = BENCHMARKS[name]
    fitness = study["settings"]["fitness"]
    shots = fitness.get("num_fewshot")
    notes = ["lm-evaluation-harness", f"task {name}", "its own number of shots" if shots is None else f"{shots}-shot"]
    if metric := fitness.get("metric"):
        notes.append(str(metric if isinstance(metric, str) else metric.get(name, "")))
    return EvalResultEntry(dataset_id=dataset, task_id=task, value=round(100 * found, 2), notes=", ".join(filter(None, notes)))


def write_benchmark_result(study: Mapping[str, Any] | None, folder: Path) -> None:
    """Write the result of a benchmark into a folder that is published, where there is one."""
    from huggingface_hub import eval_result_entries_to_yaml

    if (entry := benchmark_result(study)) is not None:
        file = folder / EVAL_FOLDER / f"{entry.task_id}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")


def _accuracy(study: Mapping[str, Any] | None) -> float | None:
    """The winner's accuracy on the test split, where there is one."""
    results = (study or {}).get("results")
    if not results or results["split"] != "test":
        return None
    winner = next((row for row in results["rows"] if row["winner"]), None)
    return None if winner is None or winner.get("accuracy") is None else float(winner["accuracy"])


def _benchmark(study: Mapping[str, Any]) -> str | None:
    """lm_eval's name of the benchmark that is the whole test split; None where it is none, or a part of one."""
    settings = study["settings"]
    test = settings["data"].get("test") or {}
    names = test.get("lm_eval") or []
    is_part = any(test.get(key) for key in ("start", "count", "filter"))
    if settings["fitness"].get("task") != "lm_eval" or len(names) != 1 or is_part:
        return None
    return names[0] if names[0] in BENCHMARKS else None
