"""Searches over LoRA adapters of one base, which run on it without being merged; the result is an
adapter too."""

import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from refusals import refused
from safetensors.torch import load_file, save_file
from searches import facts
from slowly import slow_beyond
from transformers import AutoModelForCausalLM

from hf_evomerge import (
    EvoMergeError,
    Recipe,
    SourceRef,
    build_model,
    diff_models,
    evaluate_model,
    inspect_model,
    open_source,
    run_search,
)
from hf_evomerge.errors import SearchError
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.memory import worker_memory
from hf_evomerge.search.evaluation.quantization import keep_differentiable, packed
from hf_evomerge.search.results.show import describe_study

STEPS = "[{by: gradient, evaluations: 12, batch: 2}]"
ROWS = {"merge": "{groups: rows}", "optimize": STEPS}
KINDS = {
    "rows": ROWS,
    "cma": {"merge": "{groups: block}"},
    "hybrid": {"space": "hybrid", "optimize": STEPS},
}


@pytest.mark.parametrize("kind", slow_beyond(["rows", "hybrid"], KINDS))
def test_unmerged_candidates_score_as_merged_ones(kind, adapters, search_config, tmp_path):
    """Every row of the table has the score, up to rounding, that the same model has when it is
    merged."""
    config = search_config(**{"space": "ps", **KINDS[kind], **adapters})
    result = run_search(config, tmp_path, build=False)
    merged = _with(config, unmerged=False)
    assert len(result.rows) >= 5
    for row in result.rows:
        values = merged.evaluate(row.target, "test").values
        assert np.allclose(values, row.scores.values, atol=1e-4), row.model


def _with(config, **compute):
    """Evaluates for a search with other settings of `compute`."""
    changed = config.compute.model_copy(update=compute)
    return Evaluator(config.model_copy(update={"compute": changed}))


@pytest.mark.parametrize("kind", slow_beyond(["8bit"], ["8bit", "4bit"]))
def test_a_quantised_base(kind, adapters, search_config, tmp_path):
    """Every score is one on the quantised base, as peft has it there; two workers give the same
    study."""
    out = tmp_path / "whole"
    config = search_config(**ROWS, **adapters, compute={"quantization": kind})
    result = run_search(config, out, build=False)
    evaluator = Evaluator(config)
    plain = _with(config, quantization=None)
    packing = packed(kind, torch.float32, "cpu")
    base = AutoModelForCausalLM.from_pretrained(adapters["base"]["model"], **packing)
    keep_differentiable(base)
    for label, ref in config.parents.items():
        model = base if ref.adapter is None else PeftModel.from_pretrained(base, ref.adapter).eval()
        (row,) = (row.scores.values for row in result.rows if row.label == label)
        with torch.inference_mode():
            values = evaluator.tasks.prepared(ref, "test").evaluate(model).values
            unpacked = plain.evaluate(ref, "test").values
        assert np.allclose(values, row, atol=2e-3), label
        assert not np.allclose(unpacked, row, atol=2e-3), label
        base = base if ref.adapter is None else model.unload()
    assert f"run on their base of {kind[0]} bits unmerged" in describe_study(out)
    if kind == "4bit":  # workers take long to start
        run_search(config, tmp_path / "workers", build=False, workers=2)
        assert facts(tmp_path / "workers") == facts(out)
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
    first, second = adapters["sources"]
    broken = shutil.copytree(second["adapter"], tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, broken / "adapter_model.safetensors")
    sources = [first, {**second, "adapter": str(broken)}]
    config = search_config(base=adapters["base"], sources=sources)
    told = r"broken: \S+: the adapter has NaN, or infinite numbers; make it again"
    with refused(SearchError, told):
        run_search(config, tmp_path / "out", build=False)


# ---- what such a search ends with


CORE = "{method: ties, core_space: true, groups: block, parameters: {density: 0.6}}"


@pytest.mark.parametrize(
    "more",
    [{}, {"merge": CORE}, {"merge": CORE, "optimize": STEPS}],
    ids=["sum", "ties in core space", "the same by gradient"],
)
def test_a_search_over_adapters_ends_with_one(more, adapters, search_config, tmp_path):
    """The winner is an adapter that scores what the search says, which commands and functions open
    as the model it is."""
    config = search_config(**more, **adapters)
    result = run_search(config, tmp_path / "out")
    folder = tmp_path / "out" / "model"
    files = {"adapter_config.json", "adapter_model.safetensors", "recipe.yaml", "tokenizer.json"}
    assert files <= {file.name for file in folder.iterdir()}
    (winner,) = (row.scores.mean for row in result.rows if row.winner)
    assert evaluate_model(str(folder), config).scores.mean == pytest.approx(winner, abs=1e-5)
    whole = build_model(Recipe.load(folder / "recipe.yaml"), tmp_path / "whole", whole=True)
    assert inspect_model(folder).stored == inspect_model(whole).stored
    assert (diff_models(folder, whole).total.distance or 0) < 1e-6


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"compute": "{unmerged: false}"}, "goes with space: ps and adapters that run unmerged"),
        (KINDS["hybrid"], "goes with space: ps"),
        ({}, "is no LoRA adapter"),
    ],
)
def test_core_space_needs_adapters_that_run_unmerged(more, line, adapters, search_config):
    """A search that would write whole weights is refused before anything is loaded."""
    sources = adapters["sources"] if more else [*adapters["sources"], adapters["base"]]
    given = {"space": "ps", **adapters, **more, "sources": sources, "merge": CORE}
    config = search_config(**given)
    with refused(EvoMergeError, f"^merge.core_space: .*{line}"):
        Evaluator(config).sources.runs_unmerged(config.merge.part())


def test_an_adapter_is_opened_with_its_own_tokenizer(adapters, tiny, tmp_path):
    """A chat template that the recipe gives goes with the adapter, and is read with it."""
    folder = build_model(_recipe(**adapters, chat_template="X"), tmp_path / "out")
    source = open_source(str(folder))
    assert source.tokenizer().chat_template == "X"
    assert source.pinned == SourceRef(model=str(tiny / "base"), adapter=str(folder))


def _recipe(*weights, **fields):
    parameters = [{"weight": weight} for weight in weights]
    merge = {"method": "task_arithmetic", "parameters": parameters}
    return Recipe.model_validate({**fields, "merge": merge})


def test_adapters_are_merged_again(adapters, tiny, tmp_path):
    """A recipe names an adapter alone; the one that is kept names its base, and the result is that
    of both steps at once."""
    alone = adapters["sources"][0]["adapter"]
    first = build_model(_recipe(0.5, 0.5, **adapters), tmp_path / "first")
    sources = [{"model": str(first)}, {"model": alone}]
    second = build_model(_recipe(base=adapters["base"], sources=sources), tmp_path / "second")
    assert Recipe.load(second / "recipe.yaml").sources == [
        SourceRef(model=str(tiny / "base"), adapter=adapter) for adapter in (str(first), alone)
    ]
    once = build_model(_recipe(1.5, 0.5, **adapters), tmp_path / "once", whole=True)
    state = AutoModelForCausalLM.from_pretrained(once).state_dict()
    source = open_source(str(second))
    for name in source.tensors:
        assert torch.allclose(source.read(name), state[name], atol=1e-6), name
