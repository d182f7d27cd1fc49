"""What is refused before a search begins, in one line, with nothing written."""

import re

import pytest
import yaml
from searches import GRADIENT
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evomerge.errors import EvoMergeError, FitnessError, RecipeError, SearchError, SourceError
from hf_evomerge.search.evaluation.model_pool import ModelPool
from hf_evomerge.search.run import resume_search, run_search

SLERP = {"method": "slerp", "sources": [0], "options": {"t": {"low": 0, "high": 2}}}
SCE = {"method": "sce", "options": {"select_topk": {"low": 0.1, "high": 1}}}
TIES = {"method": "ties", "parameters": {"weight": 0.5, "density": {"low": 0.2, "high": 1}}}
LORA = {"baselines": ["lora"]}
TOGETHER = {"baselines": ["merge+lora"]}
NO_GRADIENT = "fitness.task: generation has no gradient; use likelihood, or by: cma"
NO_DENSITY = "optimize: by: gradient moves no density; give weight a range, or write cma"
WRITES = {"task": "generation", "max_new_tokens": 2}
PACKED = {"compute": {"quantization": "4bit"}, "adapters": True}  # of the fixture
WEIGHTS = {"quantization": "4bit", "unmerged": False}
SPREAD = {"quantization": "4bit", "device": "auto", "device_map": "auto"}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"merge": {"method": "dare_tise"}}, RecipeError, "'dare_tise' is not known"),
        (
            {"merge": {"parameters": {"wait": 1.0}}},
            SearchError,
            "merge.parameters.wait: task_arithmetic has no such",
        ),
        ({"merge": {"options": {"density": 1.0}}}, SearchError, "merge.options.density"),
        ({"merge": SLERP}, EvoMergeError, "out of range"),
        ({"base": None}, RecipeError, "name the base model"),
        ({"base": {"model": "./nowhere/base"}}, SourceError, "./nowhere/base: no such folder"),
        (
            {"sources": [{"model": "./nowhere/a"}, {"model": "./nowhere/b"}]},
            SourceError,
            "./nowhere/a: no such folder",
        ),
        (
            {"data": {"search": {"jsonl": "nowhere.jsonl"}}},
            FitnessError,
            "nowhere.jsonl: no such file",
        ),
        (
            {"compute": {"device": "toaster"}},
            SearchError,
            "compute.device: 'toaster' cannot be used here: ",
        ),
        ({"data": {}}, FitnessError, "data.search: not given"),
        (
            {"fitness": WRITES, "compare": LORA},
            SearchError,
            "baselines: lora follows a gradient; leave it out: ",
        ),
        (
            {"fitness": {"task": "perplexity"}, "compare": {"baselines": ["prompt"]}},
            SearchError,
            "baselines: prompt shows search examples before each question; leave it out: the task "
            "perplexity has no prompts that take them",
        ),
        (
            {"compare": TOGETHER},
            SearchError,
            "baselines: merge+lora goes with merge weights that are searched by: gradient",
        ),
        (
            {"compare": TOGETHER, "merge": {"method": "ties"}},
            SearchError,
            "merge+lora adds an adapter to a sum of task vectors",
        ),
        (
            {"compare": TOGETHER, "merge": {"options": {"lambda": 0}}},
            SearchError,
            "without normalize and lambda: 0",
        ),
        (
            {"compare": TOGETHER, "base": None, "merge": {"method": "linear"}},
            SearchError,
            "adds an adapter to a sum",
        ),
        ({"optimize": [{"by": "gradient", "fitness": WRITES}, {}]}, FitnessError, NO_GRADIENT),
        ({"optimize": [GRADIENT], "fitness": WRITES}, FitnessError, NO_GRADIENT),
        (
            {"optimize": [GRADIENT], "merge": {"method": "model_stock"}},
            SearchError,
            "every parameter of model_stock is fixed",
        ),
        (
            {"optimize": [GRADIENT], "merge": SCE},
            RecipeError,
            "sce has no gradient; those that have one are ",
        ),
        ({"optimize": [GRADIENT], "merge": TIES}, SearchError, NO_DENSITY),
        (
            {**PACKED, "space": "dfs", "merge": {}, "optimize": []},
            EvoMergeError,
            "quantization: goes with space: ps",
        ),
        (
            {**PACKED, "compute": WEIGHTS},
            EvoMergeError,
            "quantization: goes with space: ps and adapters that run unmerged",
        ),
        (
            {**PACKED, "merge": {"method": "ties"}},
            EvoMergeError,
            "quantization: ties is not the sum",
        ),
        ({**PACKED, "compare": LORA}, EvoMergeError, "baselines: lora fine-tunes whole models"),
        (
            {**PACKED, "compute": SPREAD},
            EvoMergeError,
            "compute.device_map: goes with space: ps over whole",
        ),
        (
            {**PACKED, "merge": {"method": "ties"}, "compute": {"unmerged": True}},
            EvoMergeError,
            "unmerged: ties is not the sum of weighted task vectors",
        ),
        (
            {"compare": {"contributions": True}, "merge": {"method": "slerp", "groups": "model"}},
            SearchError,
            "a method that can merge one source less (found ps, slerp of 2)",
        ),
        (
            {"compare": {"contributions": True}, "space": "dfs"},
            SearchError,
            "compare.contributions: goes with space: ps",
        ),
        (
            {"compare": {"contributions": True}, "merge": {"router": 1}},
            SearchError,
            "no merge is left without b",
        ),
    ],
)
def test_refused_before_anything_begins(changes, kind, message, search_config, adapters, tmp_path):
    """What cannot work is refused with one line that names it, before a folder or a study is
    made."""
    out = tmp_path / "out"
    changes = dict(changes)
    given = adapters if changes.pop("adapters", False) else {}
    with pytest.raises(kind, match=re.escape(message)) as caught:
        run_search(search_config(**{"space": "ps", **given, **changes}), out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_sources_that_do_not_fit_are_refused(tiny, search_config, tmp_path):
    """Sources of different depth cannot be merged, nor layers of different width share a path, and
    no study is made."""
    deep = [{"model": str(tiny / "a")}, {"model": str(tiny / "deep")}]
    with pytest.raises(SourceError, match=r"number of layers differs: 2 in .* 3 in "):
        run_search(search_config(sources=deep), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tiny / "a")
    wide = type(model)(
        type(model.config)(**{**model.config.to_dict(), "hidden_size": 32, "head_dim": 16})
    )
    wide.save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(tiny / "a").save_pretrained(tmp_path / "wide")
    for space in ("dfs", "hybrid"):
        with pytest.raises(SourceError, match=r"head_dim .*16"):
            run_search(
                search_config(
                    space, sources=[{"model": str(tiny / "a")}, {"model": str(tmp_path / "wide")}]
                ),
                tmp_path / "out",
            )
    assert not (tmp_path / "out").exists()


def test_nothing_of_the_users_is_overwritten(search_config, tmp_path):
    """A folder that holds a model, a recipe or another search file, and no study, is refused and
    left as it was."""
    config = search_config()
    search_config(compute={"seed": 1}).save(tmp_path / "search.yaml")
    with pytest.raises(SearchError, match=r"the search\.yaml of another search"):
        run_search(config, tmp_path)
    (tmp_path / "search.yaml").unlink()
    for name in ("model", "recipe.yaml", "results.json", "plots"):
        (tmp_path / name).mkdir()
        with pytest.raises(SearchError, match=f"holds a {name} but no study"):
            run_search(config, tmp_path)
        assert list(tmp_path.iterdir()) == [tmp_path / name]
        (tmp_path / name).rmdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SearchError, match="holds a model; choose another folder"):
        run_search(config, tmp_path)
    (tmp_path / "config.json").unlink()
    text = "# my search\n" + yaml.safe_dump(config.model_dump(mode="json", exclude_none=True))
    (tmp_path / "search.yaml").write_text(text, encoding="utf-8")
    run_search(config, tmp_path, build=False)
    assert (tmp_path / "search.yaml").read_text(encoding="utf-8") == text
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("mine")
    with pytest.raises(SearchError, match="was not made by this search"):
        resume_search(tmp_path)
    assert (tmp_path / "model" / "config.json").read_text() == "mine"


def test_data_that_cannot_serve_is_refused_before_a_model_is_loaded(
    tiny, tmp_path, search_config, monkeypatch
):
    """Answers that are no numbers, and retained examples that the search looks at, are refused by
    file and line."""
    monkeypatch.setattr(ModelPool, "model", None)
    with pytest.raises(FitnessError, match=r"search\.jsonl:1: the answer .* is not a number"):
        run_search(search_config(fitness={"task": "generation"}), tmp_path / "a")
    same = search_config(compare={"retain": {"old": {"jsonl": str(tiny / "validation.jsonl")}}})
    with pytest.raises(
        FitnessError, match=r"retain\.old: .*validation\.jsonl:1 is .* of the validation split"
    ):
        run_search(same, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
