"""Searches over the layers of one model: they find, build and fold a path, and what cannot work is
refused in one line."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from recipes import refs_in
from refusals import refused
from transformers import AutoModelForCausalLM

from hf_evomerge import fold, plan_search, run_search
from hf_evomerge.errors import SearchError
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.study.study import Study

PRUNE = "{kind: prune, layers: 1}"
TWO = "{kind: prune, layers: 2}"
SWEEP = "[{by: sweep, evaluations: 6}]"


def _settings(tiny, path, steps):
    """One model of three layers, and no base."""
    sources = refs_in(tiny, "deep")
    return {"space": "dfs", "sources": sources, "base": None, "path": path, "optimize": steps}


@pytest.mark.parametrize(
    ("path", "steps", "hops"),
    [
        (PRUNE, SWEEP, {2}),
        (TWO, "[{by: sweep, evaluations: 6}, {by: gradient, evaluations: 6}]", {1}),
        (TWO, "[{evaluations: 4, population: 4}]", {1}),
        ("{kind: gates}", "[{by: gradient, evaluations: 6}]", set(range(1, 7))),
    ],
    ids=["sweep", "sweep-gradient", "cma", "dfs"],
)
def test_one_model(path, steps, hops, tiny, search_config, tmp_path):
    """Each search is planned, and ends with a path of the hops that it may have, built from one
    source, that folds."""
    config = search_config(**_settings(tiny, path, steps), compare="{baselines: [average]}")
    plan = plan_search(config)
    (text,) = (phase.text for phase in plan.phases if phase.name == "dfs")
    if steps == SWEEP:
        assert "3 evaluations, paths of" in text
        assert text.endswith("every candidate on 5 of 5 examples at first")
        assert not [warning for warning in plan.warnings if warning.startswith("dfs")]
    out = tmp_path / "out"
    result = run_search(config, out, build=path == PRUNE)
    depth = len(result.winner.flow.path)
    assert depth in hops
    assert [row.stage for row in result.rows if row.stage != "dfs-first"] == ["source", "dfs"]
    study = Study.open(out)
    for trial in study.trials():
        hop_count = len(study.recipe(trial.recipe_key).flow.path)
        assert hop_count in hops or trial.scores.values.size < 5
    if path == PRUNE:
        plain = AutoModelForCausalLM.from_pretrained(fold(out / "model", tmp_path / "plain"))
        assert plain.config.num_hidden_layers == depth


def test_a_pruned_model_is_an_adapter(tiny, search_config, tmp_path):
    """With `adapter: auto` the winner of a search over one model is an adapter of it, whose logits
    are those of the candidate; it can be a source of the next search."""
    settings = _settings(tiny, PRUNE, SWEEP) | {"compare": "{baselines: []}"}
    config = search_config(**settings, output="{adapter: auto}")
    model = tmp_path / "out" / "model"
    winner = run_search(config, tmp_path / "out").winner
    adapted = AutoPeftModelForCausalLM.from_pretrained(model).eval()
    evaluator = Evaluator(config)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = evaluator.models.model(winner)(ids).logits
        assert torch.equal(adapted(ids).logits, expected)
    again = search_config(**settings | {"sources": refs_in(model.parent, "model")})
    assert Evaluator(again).evaluate(again.sources[0]) == evaluator.evaluate(winner)


@pytest.mark.parametrize(
    ("layers", "steps", "message"),
    [
        (
            1,
            "[{by: sweep, evaluations: 2}]",
            r"sweep: all candidates, 5 of 5 examples at first, take 3 evalu.* \(found 2\)",
        ),
        (1, "[{by: sweep, evaluations: 2}, {}]", "sweep: all candidates"),
        (3, "[]", r"path\.layers: the model has 3 layers; leave out fewer than these \(found 3\)"),
    ],
)
def test_what_cannot_work_is_refused(layers, steps, message, tiny, search_config):
    """A budget that ends before the sweep, and more layers than there are: before a model is
    read."""
    settings = _settings(tiny, f"{{kind: prune, layers: {layers}}}", steps)
    with refused(SearchError, message):
        plan_search(search_config(**settings))
