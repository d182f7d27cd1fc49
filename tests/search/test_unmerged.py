"""Searches over LoRA adapters of one base, which run on it without being merged; the result is an
adapter too."""

import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from searches import GRADIENT, facts
from slowly import slow_beyond
from transformers import AutoModelForCausalLM

from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints.diff import diff_models
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import EvoMergeError, SearchError
from hf_evomerge.recipes.recipe import Recipe, SourceRef
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.memory import worker_memory
from hf_evomerge.search.evaluation.quantization import keep_differentiable, packed
from hf_evomerge.search.results.show import describe_study
from hf_evomerge.search.run import run_search
from hf_evomerge.search.score_model import evaluate_model
from hf_evomerge.search.study.study import Study

ROWS = {"merge": {"groups": "rows"}, "optimize": [{**GRADIENT, "batch": 2}]}
KINDS = {
    "rows": ROWS,
    "cma": {"merge": {"groups": "block"}},
    "hybrid": {
        "space": "hybrid",
        "optimize": [
            {**GRADIENT, "space": "ps", "batch": 2},
            {**GRADIENT, "space": "dfs", "batch": 2},
        ],
    },
}


@pytest.mark.parametrize("kind", slow_beyond(["rows", "hybrid"], KINDS))
def test_unmerged_candidates_score_as_merged_ones(kind, adapters, search_config, tmp_path):
    """Every row of the table has the score, up to rounding, that the same model has when it is
    merged."""
    config = search_config(**{"space": "ps", **KINDS[kind], **adapters})
    result = run_search(config, tmp_path, build=False)
    merged = Evaluator(
        config.model_copy(update={"compute": config.compute.model_copy(update={"unmerged": False})})
    )
    assert len(result.rows) >= 5
    with Study.open(tmp_path) as study:
        for row in result.rows:
            target = config.parents.get(row.label) or study.recipe(row.label)
            scores = merged.evaluate(target, "test")
            assert np.allclose(scores.values, row.scores.values, atol=1e-4), row.model


@pytest.mark.parametrize("kind", slow_beyond(["8bit"], ["8bit", "4bit"]))
def test_a_quantised_base(kind, adapters, search_config, tmp_path):
    """Every score is one on the quantised base, as peft has it there; two workers give the same
    study."""
    config = search_config(**{**ROWS, **adapters}, compute={"quantization": kind})
    result = run_search(config, tmp_path / "whole", build=False)
    base = AutoModelForCausalLM.from_pretrained(
        adapters["base"]["model"], **packed(kind, torch.float32, "cpu")
    )  # type: ignore[arg-type]
    keep_differentiable(base)
    evaluator = Evaluator(config)
    plain = Evaluator(
        config.model_copy(
            update={"compute": config.compute.model_copy(update={"quantization": None})}
        )
    )
    with torch.inference_mode():
        for label, ref in config.parents.items():
            model = (
                base if ref.adapter is None else PeftModel.from_pretrained(base, ref.adapter).eval()
            )
            task = evaluator.tasks.prepared(ref, "test")
            row = next(row for row in result.rows if row.label == label)
            assert np.allclose(task.evaluate(model).values, row.scores.values, atol=2e-3), label
            assert not np.allclose(
                plain.evaluate(ref, "test").values, row.scores.values, atol=2e-3
            ), label
            base = base if ref.adapter is None else model.unload()
    assert f"run on their base of {kind[0]} bits unmerged" in describe_study(tmp_path / "whole")
    if kind == "4bit":  # workers take long to start
        run_search(config, tmp_path / "workers", build=False, workers=2)
        assert facts(tmp_path / "workers") == facts(tmp_path / "whole")
    assert worker_memory(evaluator.config, evaluator) < worker_memory(plain.config, plain)


def test_a_gradient_through_factors_needs_no_second_base(adapters, search_config):
    """No weight of the base has a gradient: a search by gradient holds what one by evolution
    does."""

    def memory(by):
        config = search_config("ps", **adapters, optimize=[{"by": by, "evaluations": 20}])
        return worker_memory(config, Evaluator(config))

    assert memory("gradient") == memory("cma")


def test_an_adapter_with_nan_is_named(adapters, search_config, tmp_path):
    """Where candidates run unmerged, it is not the base that cannot be evaluated."""
    broken = shutil.copytree(adapters["sources"][1]["adapter"], tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, broken / "adapter_model.safetensors")
    sources = [adapters["sources"][0], {**adapters["sources"][1], "adapter": str(broken)}]
    config = search_config("ps", base=adapters["base"], sources=sources)
    with pytest.raises(
        SearchError, match=r"broken: \S+: the adapter has NaN, or infinite numbers; make it again"
    ):
        run_search(config, tmp_path / "out", build=False)


# ---- what such a search ends with


CORE = {"method": "ties", "core_space": True, "groups": "block", "parameters": {"density": 0.6}}


@pytest.mark.parametrize(
    "more",
    [{}, {"merge": CORE}, {"merge": CORE, "optimize": [{**GRADIENT, "batch": 2}]}],
    ids=["sum", "ties in core space", "the same by gradient"],
)
def test_a_search_over_adapters_ends_with_one(more, adapters, search_config, tmp_path):
    """The winner is an adapter that scores what the search says, which commands and functions open
    as the model it is."""
    config = search_config("ps", **more, **adapters)
    result = run_search(config, tmp_path / "out")
    folder = tmp_path / "out" / "model"
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.yaml",
        "tokenizer.json",
    } <= {file.name for file in folder.iterdir()}
    winner = next(row for row in result.rows if row.winner)
    assert evaluate_model(str(folder), config).scores.mean == pytest.approx(
        winner.scores.mean, abs=1e-5
    )
    whole = build_model(Recipe.load(folder / "recipe.yaml"), tmp_path / "whole", whole=True)
    assert inspect_model(folder).stored == inspect_model(whole).stored
    assert (diff_models(folder, whole).total.weights.relative or 0) < 1e-6


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"compute": {"unmerged": False}}, "goes with space: ps and adapters that run unmerged"),
        (KINDS["hybrid"], "goes with space: ps"),
        ({"sources": "whole"}, "is no LoRA adapter"),
    ],
)
def test_core_space_needs_adapters_that_run_unmerged(more, line, adapters, search_config, tiny):
    """A search that would write whole weights is refused before anything is loaded."""
    given = {**adapters, **more, "merge": CORE}
    if "sources" in more:
        given["sources"] = [*adapters["sources"], adapters["base"]]
    config = search_config(**{"space": "ps", **given})
    with pytest.raises(EvoMergeError, match=f"^merge.core_space: .*{line}"):
        Evaluator(config).sources.runs_unmerged(config.merge.part())


def test_an_adapter_is_opened_with_its_own_tokenizer(adapters, tiny, tmp_path):
    """A chat template that the recipe gives goes with the adapter, and is read with it."""
    recipe = Recipe.model_validate(
        {**adapters, "merge": {"method": "task_arithmetic"}, "chat_template": "X"}
    )
    folder = build_model(recipe, tmp_path / "out")
    source = open_source(str(folder))
    assert source.tokenizer().chat_template == "X"
    assert source.pinned == SourceRef(model=str(tiny / "base"), adapter=str(folder))


def test_adapters_are_merged_again(adapters, tiny, tmp_path):
    """A recipe names an adapter alone; the one that is kept names its base, and the result is that
    of both steps at once."""
    half = {"weight": 0.5}
    merge = {"method": "task_arithmetic", "parameters": [half, half]}
    alone = adapters["sources"][0]["adapter"]
    first = build_model(Recipe.model_validate({**adapters, "merge": merge}), tmp_path / "first")
    data = {
        **adapters,
        "sources": [{"model": str(first)}, {"model": alone}],
        "merge": {"method": "task_arithmetic"},
    }
    second = build_model(Recipe.model_validate(data), tmp_path / "second")
    assert Recipe.load(second / "recipe.yaml").sources == [
        SourceRef(model=str(tiny / "base"), adapter=adapter) for adapter in (str(first), alone)
    ]
    merge = {"method": "task_arithmetic", "parameters": [{"weight": 1.5}, {"weight": 0.5}]}
    once = build_model(
        Recipe.model_validate({**adapters, "merge": merge}), tmp_path / "once", whole=True
    )
    state = AutoModelForCausalLM.from_pretrained(once).state_dict()
    source = open_source(str(second))
    for name in source.tensors:
        assert torch.allclose(source.read(name), state[name], atol=1e-6), name
