"""Searches over LoRA adapters of one base, which run on it without being merged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from searches import GRADIENT, facts
from slowly import slow_beyond
from transformers import AutoModelForCausalLM

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.memory import memory_of_models
from hf_evomerge.search.evaluation.quantization import keep_differentiable, packed
from hf_evomerge.search.results.show import describe_study
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sources and base of a search over two adapters of the tiny family's base."""
    folder, sources = tmp_path_factory.mktemp("adapters"), []
    for number in range(2):
        torch.manual_seed(number)
        config = LoraConfig(r=2 + number, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny / "base"), config).save_pretrained(folder / str(number))
        sources.append({"model": str(tiny / "base"), "adapter": str(folder / str(number))})
    return {"sources": sources, "base": {"model": str(tiny / "base")}}


ROWS = {"merge": {"groups": "rows"}, "optimize": [{**GRADIENT, "batch": 2}]}
KINDS: dict[str, dict[str, Any]] = {
    "rows": ROWS,
    "cma": {"merge": {"groups": "block"}},
    "hybrid": {
        "space": "hybrid",
        "optimize": [{**GRADIENT, "space": "ps", "batch": 2}, {**GRADIENT, "space": "dfs", "batch": 2}],
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_unmerged_candidates_score_as_merged_ones(kind, adapters, search_config, tmp_path):
    """Every row of the table has the score, up to rounding, that the same model has when it is merged."""
    config = search_config(**{"space": "ps", **KINDS[kind], **adapters})
    result = run_search(config, tmp_path, build=False)
    merged = Evaluator(config.model_copy(update={"compute": config.compute.model_copy(update={"unmerged": False})}))
    rows = [row for row in result.rows if row.stage != "temperature"]
    assert len(rows) >= 5
    with Study.open(tmp_path) as study:
        for row in rows:
            target = config.parents.get(row.label) or study.recipe(row.label)
            scores = merged.evaluate(target, "test")
            assert np.allclose(scores.values, row.scores.values, atol=1e-4), row.model


def test_memory_is_that_of_the_base_and_its_adapters(adapters, search_config):
    """A search over adapters is said to hold the base and factors, far less than a search that merges."""
    config = search_config(**{**ROWS, **adapters})
    light = memory_of_models(config, Evaluator(config))["ps"]
    merging = config.model_copy(update={"compute": config.compute.model_copy(update={"unmerged": False})})
    assert light < 0.6 * memory_of_models(merging, Evaluator(merging))["ps"]


@pytest.mark.parametrize("kind", slow_beyond(["8bit"], ["8bit", "4bit"]))
def test_a_quantised_base(kind, adapters, search_config, tmp_path):
    """Every score is one on the quantised base, as peft has it there; two workers give the same study."""
    config = search_config(**{**ROWS, **adapters}, compute={"quantization": kind})
    result = run_search(config, tmp_path / "whole", build=False)
    base = AutoModelForCausalLM.from_pretrained(adapters["base"]["model"], **packed(kind, torch.float32, "cpu"))  # type: ignore[arg-type]
    keep_differentiable(base)
    evaluator = Evaluator(config)
    plain = Evaluator(config.model_copy(update={"compute": config.compute.model_copy(update={"quantization": None})}))
    with torch.inference_mode():
        for label, ref in config.parents.items():
            model: Any = base if ref.adapter is None else PeftModel.from_pretrained(base, ref.adapter).eval()
            task = evaluator.tasks.prepared(ref, "test")
            row = next(row for row in result.rows if row.label == label)
            assert np.allclose(task.evaluate(model).values, row.scores.values, atol=2e-3), label
            assert not np.allclose(plain.evaluate(ref, "test").values, row.scores.values, atol=2e-3), label
            base = base if ref.adapter is None else model.unload()
    assert f"run on their base of {kind[0]} bits unmerged" in describe_study(tmp_path / "whole")
    if kind == "4bit":  # workers take long to start
        run_search(config, tmp_path / "workers", build=False, workers=2)
        assert facts(tmp_path / "workers") == facts(tmp_path / "whole")
    memory, whole = (memory_of_models(each.config, each) for each in (evaluator, plain))
    assert memory["parents"] == memory["ps"] < whole["ps"] == whole["parents"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"space": "dfs", "merge": {}, "optimize": []}, "quantization: goes with space: ps"),
        ({"compute": {"unmerged": False}}, "quantization: goes with space: ps and adapters that run unmerged"),
        ({"merge": {"method": "ties"}, "optimize": []}, "quantization: ties is not the sum"),
        ({"compare": {"baselines": ["lora"]}}, "baselines: lora fine-tunes whole models"),
        ({"compute": {"device": ["cpu", "cpu"], "devices_per_model": 2}}, "devices_per_model: a quantised base"),
        (
            {"merge": {"method": "ties"}, "optimize": [{}], "compute": {"unmerged": True, "quantization": None}},
            "unmerged: ties is not the sum of weighted task vectors",
        ),
    ],
)
def test_what_needs_merged_weights_is_refused(settings, line, adapters, search_config, tmp_path):
    """A search whose base is quantised, or whose adapters are to stay unmerged, and cannot, is refused before it begins."""
    compute = {"quantization": "4bit", **settings.get("compute", {})}
    with pytest.raises(EvoMergeError, match=line):
        run_search(search_config(**{**ROWS, **adapters, **settings, "compute": compute}), tmp_path)
    assert not (tmp_path / "study.db").exists()
