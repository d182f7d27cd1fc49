"""Searches over the layers of one model: they find, build and fold a path, and what cannot work is
refused in one line."""

import pytest

from hf_evomerge.building.folded import fold
from hf_evomerge.errors import SearchError
from hf_evomerge.search.plan import plan_search
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study

GRADIENT = {"by": "gradient", "evaluations": 6}
PRUNE = {"kind": "prune", "layers": 1}
SWEEP = {"by": "sweep", "evaluations": 6}


def _settings(tiny, path, *steps):
    """One model of three layers, and no base."""
    return {
        "sources": [{"model": str(tiny / "deep")}],
        "base": None,
        "path": path,
        "optimize": [*steps],
    }


@pytest.mark.parametrize(
    ("path", "steps", "hops"),
    [
        (PRUNE, [SWEEP], {2}),
        ({**PRUNE, "layers": 2}, [SWEEP, GRADIENT], {1}),
        ({**PRUNE, "layers": 2}, [{"evaluations": 4, "population": 4}], {1}),
        ({"kind": "gates"}, [GRADIENT], set(range(1, 7))),
    ],
    ids=["sweep", "sweep-gradient", "cma", "dfs"],
)
def test_one_model(path, steps, hops, tiny, search_config, tmp_path):
    """Each search is planned, and ends with a path of the hops that it may have, built from one
    source, that folds."""
    config = search_config(
        "dfs", **_settings(tiny, path, *steps), compare={"baselines": ["average"]}
    )
    plan = plan_search(config)
    (phase,) = (phase for phase in plan.phases if phase.name == "dfs")
    if steps == [SWEEP]:
        assert "3 evaluations, paths of" in phase.text
        assert phase.text.endswith("every candidate on 5 of 5 examples at first")
        assert not [warning for warning in plan.warnings if warning.startswith("dfs")]
    result = run_search(config, tmp_path / "out", build=path == PRUNE)
    assert len(result.winner.flow.path) in hops
    assert [row.stage for row in result.rows if row.stage != "dfs-first"] == ["source", "dfs"]
    study = Study.open(tmp_path / "out")
    for trial in study.trials():
        flow = study.recipe(trial.recipe_key or "").flow
        assert len(flow.path) in hops or trial.scores.values.size < 5
    if path == PRUNE:
        from transformers import AutoModelForCausalLM

        plain = fold(tmp_path / "out" / "model", tmp_path / "plain")
        assert AutoModelForCausalLM.from_pretrained(plain).config.num_hidden_layers == len(
            result.winner.flow.path
        )


def test_a_pruned_model_is_an_adapter(tiny, search_config, tmp_path):
    """With `adapter: auto` the winner of a search over one model is an adapter of it, whose logits
    are those of the candidate; it can be a source of the next search."""
    import torch
    from peft import AutoPeftModelForCausalLM

    from hf_evomerge.search.evaluation.evaluator import Evaluator

    settings = _settings(tiny, PRUNE, SWEEP) | {"compare": {"baselines": []}}
    config = search_config("dfs", **settings, output={"adapter": "auto"})
    result = run_search(config, tmp_path / "out")
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out" / "model").eval()
    evaluator = Evaluator(config)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = evaluator.models.model(result.winner)(ids).logits
        assert torch.equal(adapted(ids).logits, expected)
    again = search_config("dfs", **settings | {"sources": [{"model": str(tmp_path / "out/model")}]})
    source = Evaluator(again).evaluate(again.sources[0])
    assert source.values.tolist() == evaluator.evaluate(result.winner).values.tolist()


def test_what_cannot_work_is_refused(tiny, search_config):
    """A budget that ends before the sweep, and more layers than there are: before a model is
    read."""
    sweep = {"by": "sweep", "evaluations": 2}
    for path, steps, message in (
        (
            PRUNE,
            [sweep],
            (
                r"optimize: by: sweep: all candidates, 5 of 5 examples at first, take 3 "
                r"evaluations \(found 2\)"
            ),
        ),
        (PRUNE, [sweep, {}], r"optimize: by: sweep: all candidates"),
        (
            {**PRUNE, "layers": 3},
            [],
            r"path\.layers: the model has 3 layers; leave out fewer than these \(found 3\)",
        ),
    ):
        with pytest.raises(SearchError, match=message):
            plan_search(search_config("dfs", **_settings(tiny, path, *steps)))
