from typing import Any

import pytest
import yaml

from hf_evomerge.hub.push_plan import is_ours
from hf_evomerge.hub.results import card_results, write_benchmark_result
from hf_evomerge.record import Record

GSM8K = {"lm_eval": ["gsm8k"], "shuffle_seed": 0}


def study(test: dict[str, Any], split: str = "test", accuracy: float | None = 0.6254, **fitness: Any) -> Record:
    """The record of a search whose winner has this accuracy."""
    rows = [{"winner": False, "accuracy": 0.9}, {"winner": True, "accuracy": accuracy}]
    settings = {"fitness": {"task": "lm_eval", **fitness}, "data": {"test": test}}
    results = {"split": split, "examples": 1319, "rows": rows}
    return Record.model_validate({"settings": settings, "results": results})


def test_a_benchmark_of_the_hub(tmp_path):
    """lm_eval's figure of all of a registered benchmark goes to `.eval_results`, in percent, and not to the card too."""
    record = study(GSM8K, num_fewshot=5, metric={"gsm8k": "exact_match,flexible-extract"})
    write_benchmark_result(record, tmp_path)
    file = tmp_path / ".eval_results" / "gsm8k.yaml"
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == [
        {
            "dataset": {"id": "openai/gsm8k", "task_id": "gsm8k"},
            "value": 62.54,
            "notes": "lm-evaluation-harness, task gsm8k, 5-shot, exact_match,flexible-extract",
        }
    ]
    assert card_results(record) == []
    assert is_ours(".eval_results/gsm8k.yaml")
    assert not is_ours(".eval_results/mine.yaml")


@pytest.mark.parametrize(
    ("record", "in_card"),
    [
        (study({"lm_eval": ["arc_easy"]}), "arc_easy"),
        (study({"lm_eval": ["gsm8k", "arc_easy"]}), "gsm8k, arc_easy"),
        (study({**GSM8K, "count": 100}), "gsm8k"),
        (study({**GSM8K, "start": 100}), "gsm8k"),
        (study({"jsonl": "problems.jsonl"}), "examples of the search"),
        (study({"dataset": "openai/gsm8k"}, task="gsm8k"), "openai/gsm8k"),
        (study(GSM8K, split="validation"), None),
        (study(GSM8K, accuracy=None), None),
        (Record(), None),
    ],
)
def test_everything_else(record, in_card, tmp_path):
    """A part of a benchmark, what lm_eval did not score, and other tasks stand in the card alone; what is no test, nowhere."""
    write_benchmark_result(record, tmp_path)
    assert not (tmp_path / ".eval_results").exists()
    assert [result.dataset_name for result in card_results(record)] == ([] if in_card is None else [in_card])
