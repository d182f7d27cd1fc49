"""A model's figures where the Hub looks for them: ``.eval_results/`` for benchmarks that it knows, the card for all others.

Only what was measured on a test split is published, and as a benchmark's figure only what was measured by lm_eval on all of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ..record import Data, Record

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

EVAL_FOLDER = ".eval_results"
BENCHMARKS: dict[str, tuple[str, str]] = {
    "gpqa_diamond_cot_zeroshot": ("Idavidrein/gpqa", "gpqa_diamond"),
    "gpqa_diamond_zeroshot": ("Idavidrein/gpqa", "gpqa_diamond"),
    "gsm8k": ("openai/gsm8k", "gsm8k"),
    "gsm8k_cot": ("openai/gsm8k", "gsm8k"),
}
"""lm_eval's tasks that are all of a benchmark on the Hub: its data set, and what the task is called there."""


def card_results(record: Record) -> list[EvalResult]:
    """Make the results in the card's metadata: the accuracy on the test split, unless it is a benchmark's."""
    from huggingface_hub import EvalResult

    accuracy = _accuracy(record)
    if record.results is None or accuracy is None or _benchmark(record) is not None:
        return []
    data = record.settings.data.get("test", Data())
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data.dataset or "custom",
            dataset_name=data.dataset or ", ".join(data.lm_eval) or "examples of the search",
            dataset_revision=data.revision,
            metric_type="accuracy",
            metric_name=f"accuracy on {record.results.examples} held-out problems",
            metric_value=round(accuracy, 4),
        )
    ]


def write_benchmark_result(record: Record, folder: Path) -> None:
    """Write the result into a folder that is published, where the test split is all of a benchmark that the Hub knows."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    accuracy, name = _accuracy(record), _benchmark(record)
    if accuracy is None or name is None:
        return
    dataset, task = BENCHMARKS[name]
    shots, metric = record.settings.fitness.num_fewshot, record.settings.fitness.metric
    notes = ["lm-evaluation-harness", f"task {name}", "its own number of shots" if shots is None else f"{shots}-shot"]
    if metric:
        notes.append(str(metric if isinstance(metric, str) else metric.get(name, "")))
    entry = EvalResultEntry(dataset, task, round(100 * accuracy, 2), notes=", ".join(filter(None, notes)))
    file = folder / EVAL_FOLDER / f"{task}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")


def _accuracy(record: Record) -> float | None:
    """The winner's accuracy on the test split, where there is one."""
    results = record.results
    return results.winner.accuracy if results is not None and results.split == "test" and results.winner is not None else None


def _benchmark(record: Record) -> str | None:
    """lm_eval's name of the benchmark that is the whole test split; None where it is none, or a part of one."""
    data = record.settings.data.get("test", Data())
    is_part = data.start or data.count is not None or data.filter
    if record.settings.fitness.task != "lm_eval" or len(data.lm_eval) != 1 or is_part:
        return None
    return data.lm_eval[0] if data.lm_eval[0] in BENCHMARKS else None
