"""What is refused before a search begins, in one line, with nothing written."""

import re

import pytest
import yaml
from refusals import refused, told
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evomerge import EvoMergeError, resume_search, run_search
from hf_evomerge.errors import FitnessError, SearchError, SourceError
from hf_evomerge.search.evaluation.model_pool import ModelPool


@pytest.mark.parametrize(
    ("changes", "message"),
    told(
        """
merge: {parameters: {wait: 1.0}}
  merge.parameters.wait: task_arithmetic has no such
merge: {options: {density: 1.0}}
  merge.options.density
merge: {method: slerp, sources: [0], options: {t: {low: 0, high: 2}}}
  out of range
base: null
  name the base model
base: {model: ./nowhere/base}
  ./nowhere/base: no such folder
compute: {device: toaster}
  compute.device: 'toaster' cannot be used here:
data: {}
  data.search: not given
{fitness: {task: generation, max_new_tokens: 2}, compare: {baselines: [lora]}}
  baselines: lora follows a gradient; leave it out:
{fitness: {task: perplexity}, compare: {baselines: [prompt]}}
  before each question; leave it out: the task perplexity has no prompts that take them
compare: {baselines: [merge+lora]}
  baselines: merge+lora goes with merge weights that are searched by: gradient
{compare: {baselines: [merge+lora]}, merge: {method: ties}}
  merge+lora adds an adapter to a sum of task v
{compare: {baselines: [merge+lora]}, merge: {options: {lambda: 0}}}
  without normalize and lambda: 0
{compare: {baselines: [merge+lora]}, base: null, merge: {method: linear}}
  adds an adapter to a sum
optimize: [{by: gradient, fitness: {task: generation, max_new_tokens: 2}}, {}]
  fitness.task: generation has no gradient; use likelihood, or by: cma
{optimize: [{by: gradient}], fitness: {task: generation, max_new_tokens: 2}}
  fitness.task: generation has no gradient; use likelihood, or by: cma
{optimize: [{by: gradient}], merge: {method: model_stock}}
  every parameter of model_stock is fixed
{optimize: [{by: gradient}], merge: {method: sce, options: {select_topk: {low: 0.1, high: 1}}}}
  sce has no gradient; those that have one are
{optimize: [{by: gradient}], merge: {method: ties, parameters: {weight: 1, density: {low: 0, high: 1}}}}
  optimize: by: gradient moves no density; give weight a range, or write cma
{compare: {contributions: true}, merge: {method: slerp, groups: model}}
  a method that can merge one source less (found ps, slerp of 2)
{compare: {contributions: true}, space: dfs}
  compare.contributions: goes with space: ps
{compare: {contributions: true}, merge: {router: 1}}
  no merge is left without b
"""  # noqa: E501
    ),
)
def test_refused_before_anything_begins(changes, message, search_config, tmp_path):
    """What cannot work is refused with one line that names it, before a folder or a study is
    made."""
    _refuse(search_config, changes, message, tmp_path / "out")


def _refuse(search_config, changes, message, out, **given):
    with refused(EvoMergeError, rf"^.*{re.escape(message)}.*$"):
        run_search(search_config(**{"space": "ps", **given, **yaml.safe_load(changes)}), out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    told("""
{space: dfs, merge: {}, optimize: []}
  quantization: goes with space: ps
compute: {quantization: 4bit, unmerged: false}
  quantization: goes with space: ps and adapters that run unmerged
merge: {method: ties}
  quantization: ties is not the sum
compare: {baselines: [lora]}
  baselines: lora fine-tunes whole models
compute: {quantization: 4bit, device: auto, device_map: auto}
  compute.device_map: goes with space: ps over whole
{merge: {method: ties}, compute: {unmerged: true}}
  unmerged: ties is not the sum of weighted task vectors
"""),
)
def test_a_quantised_base_is_refused(changes, message, search_config, adapters, tmp_path):
    """Fewer bits go with a sum of adapters that run unmerged, and with nothing else."""
    packed = {"compute": {"quantization": "4bit"}, **adapters}
    _refuse(search_config, changes, message, tmp_path / "out", **packed)


def test_sources_that_do_not_fit_are_refused(tiny, search_config, tmp_path):
    """Sources of different depth cannot be merged, nor layers of different width share a path, and
    no study is made."""
    narrow = tiny / "a"
    wide = tmp_path / "wide"
    model = AutoModelForCausalLM.from_pretrained(narrow)
    sizes = {**model.config.to_dict(), "hidden_size": 32, "head_dim": 16}
    type(model)(type(model.config)(**sizes)).save_pretrained(wide)
    AutoTokenizer.from_pretrained(narrow).save_pretrained(wide)
    for space, other, message in (
        ("ps", tiny / "deep", r"number of layers differs: 2 in .* 3 in "),
        ("dfs", wide, r"head_dim .*16"),
        ("hybrid", wide, r"head_dim .*16"),
    ):
        config = search_config(space, sources=[{"model": str(each)} for each in (narrow, other)])
        with refused(SourceError, message):
            run_search(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_of_the_users_is_overwritten(search_config, tmp_path):
    """A folder that holds a model, a recipe or another search file, and no study, is refused and
    left as it was."""
    config = search_config()
    for name, message in {
        "search.yaml": "the search.yaml of another search",
        "config.json": "holds a model; choose another folder",
        "model": "holds a model but no study",
        "recipe.yaml": "holds a recipe.yaml but no study",
        "results.json": "holds a results.json but no study",
        "plots": "holds a plots but no study",
    }.items():
        file = tmp_path / name
        search_config(compute="{seed: 1}").save(file)
        with refused(SearchError, message):
            run_search(config, tmp_path)
        assert list(tmp_path.iterdir()) == [file], name
        file.unlink()
    text = "# my search\n" + yaml.safe_dump(config.model_dump(mode="json", exclude_none=True))
    (tmp_path / "search.yaml").write_text(text, encoding="utf-8")
    run_search(config, tmp_path, build=False)
    assert (tmp_path / "search.yaml").read_text(encoding="utf-8") == text
    mine = tmp_path / "model" / "config.json"
    mine.parent.mkdir()
    mine.write_text("mine")
    with refused(SearchError, "was not made by this search"):
        resume_search(tmp_path)
    assert mine.read_text() == "mine"


def test_data_that_cannot_serve_is_refused_before_a_model_is_loaded(
    tiny, tmp_path, search_config, monkeypatch
):
    """Answers that are no numbers, and retained examples that the search looks at, are refused by
    file and line."""
    monkeypatch.setattr(ModelPool, "model", None)
    retain = {"old": {"jsonl": str(tiny / "validation.jsonl")}}
    for config, message in (
        (
            search_config(fitness="{task: generation}"),
            r"search\.jsonl:1: the answer .* is not a number",
        ),
        (
            search_config(compare={"retain": retain}),
            r"retain\.old: .*validation\.jsonl:1 is .* of the validation split",
        ),
    ):
        with refused(FitnessError, message):
            run_search(config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
