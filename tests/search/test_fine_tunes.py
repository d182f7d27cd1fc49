"""LoRA fine-tunes that a search is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from searches import Config
from transformers import AutoModelForCausalLM

from hf_evomerge.recipes.recipe import SourceRef
from hf_evomerge.search import baselines
from hf_evomerge.search.baselines import tuned_models
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.finetune import Lora, fine_tune
from hf_evomerge.search.run import run_search
from hf_evomerge.search.spaces.space import uniform_average
from hf_evomerge.search.study.study import Study


def test_fine_tunes_for_comparison(tiny: Path, tmp_path: Path, search_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA fine-tunes of the best parent and of the average have rows of their own, load, and are not trained twice."""
    monkeypatch.setattr(baselines, "RATES", (1e-4, 1e-2))
    config = search_config(baselines=["average", "lora"], retain={"old": {"jsonl": str(tiny / "test.jsonl")}})
    result = run_search(config, tmp_path, build=False)
    rows = [row for row in result.rows if row.stage == "lora"]
    assert rows[0].model in [f"LoRA fine-tune of {name}, best of 2 rates" for name in ("a", "b", "base")]
    assert rows[1].model == "LoRA fine-tune of the average, best of 2 rates"
    assert [(row.evaluations, row.retained["old"].error) for row in rows] == [(16, None)] * 2
    assert sum("LoRA fine-tune of" in sentence for sentence in result.verdict) == 2
    study = Study.open(tmp_path)
    tested = [label for label, split in study.evaluated() if split == "test" and label.startswith("lora:")]
    study.close()
    rate = tested[1].rsplit(":", 1)[1]
    folder = tmp_path / "baselines" / "average"
    tuned = SourceRef(model=str(folder / "model"), adapter=str(folder / f"lora-{rate}"))
    evaluator = Evaluator(config)
    assert evaluator.evaluate(tuned, "test") == rows[1].scores
    assert len(list(folder.glob("lora-*"))) == 2
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    tuned_models(evaluator, folder.parent, uniform_average(config), "average", 8)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_a_fine_tune_climbs(tiny: Path, search_config: Config) -> None:
    """Training raises the score on what it is trained on, gives the same adapter again, and spends what the cost pays for."""
    evaluator = Evaluator(search_config(dtype="float32"))
    ref = SourceRef(model=str(tiny / "a"))
    before = evaluator.evaluate(ref).mean
    settings = Lora.for_cost(200, len(evaluator.tasks.examples("search")), rate=5e-3)
    assert (settings.steps, settings.batch) == (66, 5)
    assert Lora.for_cost(75, 128, rate=1e-3).steps == 200
    arguments: Any = (
        evaluator.tasks.differentiable_task,
        evaluator.tasks.examples("search"),
        evaluator.tasks.tokenizer(ref),
        settings,
    )
    trained = []
    for _ in range(2):
        model = fine_tune(AutoModelForCausalLM.from_pretrained(tiny / "a", dtype=torch.float32), *arguments)
        task = evaluator.tasks.differentiable_task()
        task.prepare(evaluator.tasks.examples("search"), evaluator.tasks.tokenizer(ref))
        trained.append(task.evaluate(model))
    assert before is not None
    assert trained[0].mean is not None
    assert trained[0].mean > before + 0.5
    assert trained[0] == trained[1]
