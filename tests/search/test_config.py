"""The search file: what it may say, and what is refused with which words."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from refusals import refused, told
from searches import minimal

from hf_evomerge import EvoMergeError, SearchConfig, plan_search
from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.strict_yaml import validate


def test_defaults_are_those_of_the_paper():
    """A minimal file searches in the paper's way: 1000 trials, full CMA-ES, default population and
    step size, seed 0."""
    config = minimal()
    (step,) = config.optimize
    assert (step.by, step.evaluations) == ("cma", 1000)
    assert (step.population, step.sigma, step.minutes, step.batch) == (None, None, None, None)
    assert (config.compute.seed, config.compute.threads) == (0, 1)
    assert (config.merge.groups, config.path.kind) == ("block", "gates")


@pytest.fixture
def elsewhere(tiny, search_settings, tmp_path, monkeypatch):
    """A search file whose names are relative to its folder, seen from another folder."""
    shutil.copytree(tiny, tmp_path / "own")
    file = tmp_path / "own" / "search.yaml"
    file.write_text(yaml.safe_dump(search_settings("ps", Path("."))))
    (tmp_path / "called").mkdir()
    monkeypatch.chdir(tmp_path / "called")
    return Path("../own/search.yaml")


def test_names_are_those_beside_the_file(elsewhere, tiny, monkeypatch):
    """Models and data beside the file are found from everywhere, and before those of the caller's
    folder."""
    (Path.cwd() / "a").mkdir()
    config = SearchConfig.load(elsewhere)
    assert [source.model for source in config.sources] == ["../own/a", "../own/b"]
    assert config.data["search"].jsonl == "../own/search.jsonl"
    assert plan_search(config).phases
    monkeypatch.chdir(elsewhere.parent)
    assert [source.model for source in SearchConfig.load("search.yaml").sources] == ["a", "b"]
    shutil.copy("search.yaml", "../called/copy.yaml")
    assert SearchConfig.load("../called/copy.yaml").base == SearchConfig.load("search.yaml").base


def test_a_run_beside_the_file_is_found(elsewhere):
    """A folder of checkpoints too, which is looked into while the file is read."""
    settings = yaml.safe_load(elsewhere.read_text())
    for name in ("a", "b"):
        shutil.copytree(elsewhere.parent / name, elsewhere.parent / "runs" / f"step-{name}")
    elsewhere.write_text(
        yaml.safe_dump({**settings, "sources": {"run": "runs", "checkpoints": "step-*"}})
    )
    assert sorted(source.model for source in SearchConfig.load(elsewhere).sources) == [
        "../own/runs/step-a",
        "../own/runs/step-b",
    ]


@pytest.mark.parametrize(
    ("name", "absent", "message"),
    [
        ("model: b", "upper", "upper: no folder in {}, not in the Hub cache, and the Hub cannot"),
        ("model: b", "./upper", r"\./upper: no such folder in {}; give a folder"),
        ("jsonl: test.jsonl", "none.jsonl", "none.jsonl: no such file in {}"),
    ],
)
def test_a_name_that_is_nowhere_says_where_it_was_looked_for(
    name, absent, message, elsewhere, monkeypatch
):
    """Both folders are named, and then what the Hub said."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    key = name.partition(" ")[0]
    elsewhere.write_text(elsewhere.read_text().replace(name, f"{key} {absent}"))
    folders = f"{elsewhere.parent.resolve()} or {Path.cwd()}"
    with refused(EvoMergeError, message.format(folders)):
        plan_search(SearchConfig.load(elsewhere))


@pytest.mark.parametrize(
    ("text", "message"),
    told("""
{space: pss, optimize: quick}
  space: must be 'ps', 'dfs' or 'hybrid' (found 'pss'); did you mean ps?
fitness: {task: liklihood}
  fitness: unknown task 'liklihood'; did you mean likelihood?
sources: []
  sources: must have 1 or more entries
sources: [{model: a}]
  sources: one source is rescaled towards its base and away from it; name the base
{space: dfs, path: {kind: prune, layers: 1}}
  path.kind: prune goes with one model; name it in path.order (found 2)
{space: dfs, path: {kind: prune}}
  path.layers: is missing
{space: dfs, path: {kind: prune, layers: 1, scales: slot}}
  path.scales: no such key; there are kind, layers, order
{space: dfs, path: {order: [0]}}
  path: must be a mapping with kind: gates, prune, paper
{space: dfs, sources: [{model: a}], optimize: [{by: sweep}]}
  optimize: by: sweep cannot search dfs with path.kind: gates; write cma or gradient
optimize: [{by: sweep}]
  optimize: by: sweep cannot search ps; write cma or gradient or random
{space: dfs, path: {kind: paper}, optimize: [{by: gradient}]}
  optimize: by: gradient cannot search dfs with path.kind: paper; write cma or
optimize: [{evaluation: 3}]
  optimize.0.evaluation: no such key; did you mean evaluations?
optimize: quik
  optimize: must be quick, or a list of steps such as [{by: cma, evaluations: 500}]
optimize: [{}, {}, {}]
  optimize: ps has 2 steps at most (found 3)
optimize: [{fitness: {task: likelihood}}]
  optimize: the last step of a space climbs the search's own fitness
optimize: [{by: gradient, population: 3}]
  optimize.0: population: says nothing to by: gradient; leave it out
optimize: [{by: random, batch: 8}]
  optimize.0: batch: says nothing to by: random; leave it out
optimize: [{batch: some}]
  optimize.0.batch: must be a whole number or 'all' (found 'some')
merge: {parameters: {weight: {low: 2, high: -0.5}}}
  merge.parameters.weight: low must be below high, and start between them (found low 2.0, high -0.5
merge: {groups: tensr}
  merge.groups: must be 'tensor', 'rows', 'block', 'half' or 'model', a whole number
data: {train: {jsonl: x}}
  data.train
merge: {sources: [0, 2]}
  merge.sources: 2 is not a source; there are 2, numbered from 0
merge: {sources: [0, 0]}
  merge.sources: numbers that are distinct, each once (found [0, 0])
{space: dfs, path: {kind: gates, order: [0, 2]}}
  path.order: [0, 2] must be distinct numbers from 0 to 1
{space: hybrid, path: {kind: gates, order: [3]}}
  path.order: [3] must be distinct numbers from 0 to 2
merge: {parameters: {weight: {low: 0, high: 1, start: 2}}}
  merge.parameters.weight: low must be below high, and start between them (found low 0.0, high 1.0,
{space: dfs, path: {kind: paper, scale_bounds: [1, 2]}}
  path.scale_bounds: 1 is not between 1.0 and 2.0
optimize: [{evaluations: true}]
  optimize.0.evaluations: must be a whole number (found True)
{optimize: quick, merge: {method: [ties]}}
  merge.method: must be a text (found ['ties'])
{optimize: quick, merge: 3}
  merge: must be
optimize: [3]
  optimize.0: must be
{optimize: quick, fitness: {task: magic}}
  fitness: unknown task 'magic'
fitness: {}
  fitness: task: which one?
fitness: {task: likelihood, colour: 1}
  fitness: colour: no such key;
{fitness: {task: lm_eval}, data: {search: {jsonl: x}}}
  data.search: the documents of fitness.task
"""),
)
def test_refusals(text, message):
    """Each wrong file is refused in one line that begins with the key."""
    with pytest.raises(SearchError) as caught:
        minimal(**yaml.safe_load(text))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not re.search("Input should|a valid|Field|constrained|Error", str(caught.value))


def test_a_file_is_read_whole(tmp_path):
    """Every key of a file arrives where it belongs, numbers and flags as such."""
    file = tmp_path / "search.yaml"
    file.write_text(
        "space: hybrid\nsources: [{model: a}, {model: b, revision: main}]\nbase: {model: "
        "c}\ncompute: {seed: 3}\n"
        "merge:\n  method: dare_ties\n  options: {normalize: false, lambda: {low: 0.5, high: "
        "1.5}}\n  groups: model\n"
        "  parameters: {weight: {low: 0, high: 2, start: 1}, density: 0.5}\n"
        "path: {kind: paper, order: [2, 0], scale_bounds: [0.5, 2], initialisation: paper}\n"
        "optimize:\n  - {space: ps, evaluations: 40, sigma: 1e-1}\n  - {space: dfs, batch: 20}\n"
        "fitness: {task: likelihood}\ndata: {search: {jsonl: s.jsonl}, test: {jsonl: t.jsonl}}\n"
    )
    config = SearchConfig.load(file)
    assert config.merge.options["normalize"] is False
    assert config.merge.parameters["weight"].start_fraction == 0.5  # type: ignore[union-attr]
    assert config.merge.parameters["density"] == 0.5
    ps, dfs = config.stages
    assert (ps.evaluations, ps.step.sigma, ps.step.batch) == (40, 0.1, None)
    assert (dfs.evaluations, dfs.step.sigma, dfs.step.batch) == (1000, None, 20)
    assert (config.compute.seed, config.path.order) == (3, [2, 0])
    assert set(config.data) == {"search", "test"}


def test_a_wrong_file_is_named(tmp_path):
    """A complaint about a file begins with its name."""
    file = tmp_path / "search.yaml"
    file.write_text("space: ps\n")
    with refused(SearchError, f"^{file}: sources: is missing"):
        SearchConfig.load(file)
    with refused(SearchError, r"absent\.yaml: no such file"):
        SearchConfig.load(tmp_path / "absent.yaml")


def test_a_saved_search_is_the_same_search(tmp_path):
    """What is written to YAML, or kept in a study, reads back as the same search, also where the
    data has defaults."""
    data = "{search: {jsonl: a.jsonl, count: 3}, test: {dataset: name, split: test}}"
    config = minimal(
        data=data,
        merge="{options: {lambda: {low: 0, high: 2}}}",
        path="{kind: paper, scales: slot, scale_bounds: [0.5, 2]}",
    )
    config.save(tmp_path / "search.yaml")
    assert SearchConfig.load(tmp_path / "search.yaml") == config
    assert validate(SearchConfig, config.model_dump(mode="json"), SearchError) == config
    fine = minimal(merge="{groups: tensor}", optimize="[{by: gradient}]")
    assert validate(SearchConfig, fine.model_dump(mode="json"), SearchError) == fine


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("optimize: []", {5: [5], 20: [16], 63: [16], 64: [16, 32], 1000: [16, 32, 64, 128, 256]}),
        ("optimize: [{batch: 30}]", {20: [20], 128: [30]}),
        ("optimize: [{batch: all}]", {20: [20], 128: [128]}),
        ("optimize: quick", {1: [1], 8: [4], 16: [4], 30: [8], 128: [8]}),
        ("optimize: [{by: gradient}]", {3: [3], 10: [8], 128: [8]}),
        ("optimize: [{by: random}]", {20: [20], 128: [128]}),
    ],
)
def test_batches_grow_up_to_half_of_the_examples(text, sizes):
    """Generations have 16 examples at first and at most half of them later, unless the file says
    it; random search has all."""
    (stage,) = minimal(**yaml.safe_load(text)).stages
    assert {count: [*stage.batch_sizes(count)] for count in sizes} == sizes


def _steps(**more):
    stages = minimal(**more).stages
    return [(each.name, each.algorithm, each.evaluations, each.begins_at) for each in stages]


def test_a_step_runs_in_its_space_or_in_each():
    """A step without a space runs in each; of two steps of a space, the second begins at the winner
    of the first."""
    both = "[{by: gradient, evaluations: 9}, {evaluations: 5, space: dfs}]"
    assert _steps(space="hybrid", optimize=both) == [
        ("ps", "gradient", 9, None),
        ("dfs-first", "gradient", 9, None),
        ("dfs", "cma", 5, "dfs-first"),
    ]
    ps = ("ps", "cma", 1000, None)
    cma = "[{evaluations: 5, space: dfs}]"
    assert _steps(space="hybrid", optimize=cma) == [ps, ("dfs", "cma", 5, None)]
    assert _steps(optimize=both) == [("ps", "gradient", 9, None)]


QUICK = {"optimize": "quick", "base": "{model: c}"}


def test_quick_fills_in_what_the_file_leaves_unsaid():
    """A quick search goes by gradient where the task and the method have one, else by CMA-ES in few
    groups; at 48 scores."""
    merge = minimal(**QUICK).merge
    assert (merge.groups, merge.starts) == ("rows", ["average", "sum", "sources"])
    assert _steps(**QUICK) == [("ps", "gradient", 48, None)]
    for text in (
        "fitness: {task: generation}",
        "merge: {method: sce, options: {select_topk: {low: 0.1, high: 1}}}",
    ):
        more = {**QUICK, **yaml.safe_load(text)}
        assert minimal(**more).merge.groups == 3
        assert _steps(**more) == [("ps", "cma", 48, None)]
    halves = [(space, "gradient", 24, None) for space in ("ps", "dfs")]
    assert _steps(**QUICK, space="hybrid") == halves
    assert _steps(**QUICK, space="dfs", path="{kind: paper}") == [("dfs", "cma", 48, None)]
    assert minimal(optimize="quick").merge.starts == merge.starts
    mean = minimal(optimize="quick", merge="{method: linear}").merge
    assert mean.starts == ["average", "sources"]


def test_what_the_file_says_stays():
    """A quick search changes nothing that is written, and reads back from a study's settings as the
    same search."""
    said = "{groups: 4, starts: [], parameters: {weight: 0.5}}"
    config = minimal(**QUICK, merge=said)
    assert config.merge == minimal(merge=said).merge
    assert validate(SearchConfig, config.model_dump(mode="json"), SearchError) == config


def test_a_list_whose_only_entry_is_wrong_has_that_one_complaint():
    """It is not said to be empty as well."""
    with pytest.raises(SearchError) as refusal:
        minimal(space="dfs", path="{kind: gates, order: [-1]}")
    assert "path.order.0: must be at least 0 (found -1)" in str(refusal.value)
    assert "entries" not in str(refusal.value)
