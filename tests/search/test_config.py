"""The search file: what it may say, and what is refused with which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.file.config import SearchConfig

MINIMAL: dict[str, Any] = {"space": "ps", "sources": [{"model": "a"}, {"model": "b"}], "fitness": {"task": "likelihood"}}


def _config(**more: Any) -> SearchConfig:
    return validate(SearchConfig, {**MINIMAL, **more}, SearchError)


def test_defaults_are_those_of_the_paper() -> None:
    """A minimal file searches in the paper's way: 1000 trials, full CMA-ES, default population and step size, seed 0."""
    config = _config()
    optimizer = config.ps.optimizer
    assert (optimizer.algorithm, optimizer.evaluations, optimizer.restarts) == ("cma", 1000, "none")
    assert (optimizer.population, optimizer.sigma, optimizer.minutes) == (None, None, None)
    assert (config.seed, config.threads, config.batch) == (0, 1, None)


@pytest.mark.parametrize(
    ("space", "baseline", "stages"),
    [
        ("ps", False, ["ps"]),
        ("dfs", False, ["dfs"]),
        ("hybrid", False, ["ps", "dfs"]),
        ("ps", True, ["ps", "random"]),
        ("hybrid", True, ["ps", "dfs", "random"]),
    ],
)
def test_stages(space: str, baseline: bool, stages: list[str]) -> None:
    """A hybrid search runs PS before DFS, and the random baseline comes last."""
    config = _config(space=space, baselines=["random"] if baseline else [])
    assert [stage.name for stage in config.stages] == stages


ONE = {"space": "dfs", "sources": [{"model": "a"}]}
BY_GRADIENT = {"optimizer": {"algorithm": "gradient"}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"space": "both"}, "space: must be 'ps', 'dfs' or 'hybrid' (found 'both')"),
        ({"sources": []}, "sources: must have 1 or more entries"),
        ({"sources": [{"model": "a"}]}, "sources: ps merges two or more models; with one write space: dfs (found 1)"),
        ({"space": "dfs", "dfs": {"prune": 1}}, "dfs.prune: goes with one model; give one source, or name one in dfs.order"),
        ({"space": "dfs", "dfs": {"repeat": {}}}, "dfs.repeat: goes with one model; give one source, or name one in"),
        ({**ONE, "dfs": {"prune": 1, "scales": "slot"}}, "dfs: prune: layers are left out by gates of one pass"),
        ({**ONE, "dfs": {"prune": 1, "repetitions": 2}}, "dfs: prune: layers are left out by gates of one pass"),
        ({**ONE, "dfs": {"prune": 1, "repeat": {}}}, "dfs: repeat: is a search of its own; leave prune, scales and terms out"),
        ({**ONE, "dfs": {"repeat": {"times": [1]}}}, "dfs.repeat.times: distinct numbers: 2 or more, or 0"),
        ({**ONE, "dfs": {"repeat": {}, "optimizer": {"algorithm": "cma"}}}, "dfs: optimizer.algorithm: cma does not go with"),
        ({**ONE, "dfs": {"optimizer": {"algorithm": "sweep"}}}, "dfs: optimizer.algorithm: sweep tries every candidate"),
        ({"ps": {"optimizer": {"algorithm": "sweep"}}}, "ps: optimizer.algorithm: sweep tries every candidate"),
        ({"ps": {"optimizer": {"algoritm": "cma"}}}, "ps.optimizer.algoritm: no such key; did you mean algorithm?"),
        ({"sorces": []}, "sorces: no such key; did you mean sources?"),
        ({"seed": -1}, "seed: must be at least 0 (found -1)"),
        ({"batch": 0}, "batch: must be at least 1 (found 0)"),
        ({"batch": "some"}, "batch: must be a whole number or 'all' (found 'some')"),
        ({"ps": {"optimizer": {"batch": -1}}}, "ps.optimizer.batch: must be at least 1 (found -1)"),
        ({"ps": 5}, "ps: must be a mapping of keys to values (found 5)"),
        ({"ps": {"parameters": {"weight": {"low": 2, "high": -0.5}}}}, "ps.parameters.weight: low 2.0 is not below high -0.5"),
        ({"ps": {"parameters": {"weight": {"low": 0}}}}, "ps.parameters.weight.high: is missing"),
        ({"ps": {"parameters": {"weight": "x"}}}, "ps.parameters.weight: must be a number or a mapping of keys to values (f"),
        ({"ps": {"groups": "tensr"}}, "ps.groups: must be 'tensor' or 'rows', a whole number or a list (found 'tensr')"),
        ({"vocabulary": {"from": "bse"}}, "vocabulary.from: must be a whole number or 'base' (found 'bse')"),
        ({"finalists": 0}, "finalists: must be at least 1 (found 0)"),
        ({"threads": 0}, "threads: must be at least 1 (found 0)"),
        ({"dtype": "int4"}, "dtype: must be 'float32', 'float16' or 'bfloat16' (found 'int4')"),
        ({"data": {"train": {"jsonl": "x"}}}, "data.train"),
        ({"ps": {"sources": [0, 2]}}, "ps.sources: [0, 2] must be distinct numbers from 0 to 1"),
        ({"ps": {"sources": [0, 0]}}, "ps.sources: [0, 0] must be distinct numbers from 0 to 1"),
        ({"ps": {"sources": []}}, "ps.sources: [] must be distinct numbers from 0 to 1"),
        ({"dfs": {"order": [0, 2]}}, "dfs.order: [0, 2] must be distinct numbers from 0 to 1"),
        ({"space": "hybrid", "dfs": {"order": [3]}}, "dfs.order: [3] must be distinct numbers from 0 to 2"),
        ({"ps": {"parameters": {"weight": {"low": 1, "high": 1}}}}, "ps.parameters.weight"),
        ({"ps": {"parameters": {"weight": {"low": 0, "high": 1, "start": 2}}}}, "ps.parameters.weight"),
        ({"ps": {"parameters": {"weight": {"low": 0}}}}, "ps.parameters.weight"),
        ({"ps": {"parameters": {"weight": {"low": 0, "high": float("inf")}}}}, "ps.parameters.weight"),
        ({"ps": {"blocks_per_group": "some"}}, "ps.blocks_per_group"),
        ({"ps": {"optimizer": {"algorithm": "ga"}}}, "ps.optimizer.algorithm"),
        ({"ps": {"optimizer": {"population": 1}}}, "ps.optimizer.population: must be at least 2"),
        ({"ps": {"optimizer": {"sigma": 0}}}, "ps.optimizer.sigma: must be more than 0 (found 0)"),
        ({"ps": {"optimizer": {"evaluations": 0}}}, "ps.optimizer.evaluations: must be at least 1"),
        ({"ps": {"optimizer": {"minutes": -1}}}, "ps.optimizer.minutes: must be more than 0"),
        ({"ps": {"optimizer": {"restarts": "always"}}}, "ps.optimizer.restarts"),
        ({"dfs": {"scale_bounds": [1, 2]}}, "dfs.scale_bounds: 1 is not between 1.0 and 2.0"),
        ({"dfs": {"scale_bounds": [1.5, 0.5]}}, "dfs.scale_bounds: 1 is not between 1.5 and 0.5"),
        ({"dfs": {"scale_bounds": [0.5]}}, "dfs.scale_bounds"),
        ({"dfs": {"repetitions": 0}}, "dfs.repetitions: must be at least 1 (found 0)"),
        ({"dfs": {"max_hops": 1}}, "dfs.max_hops: must be at least 2 (found 1)"),
        ({"dfs": {"max_hops": 5000}}, "dfs.max_hops: must be at most 4096 (found 5000)"),
        ({"dfs": {"scales": "hop"}}, "dfs.scales"),
        ({"threads": 1000000}, "threads: must be at most 1024 (found 1000000)"),
        ({"ps": {"optimizer": {"population": 10**9}}}, "ps.optimizer.population: must be at most 10000 (found 1000000000)"),
        ({"ps": {"optimizer": {"evaluations": True}}}, "ps.optimizer.evaluations: must be a whole number (found True)"),
        ({"ps": {"parameters": {"weight": {"low": -1e308, "high": 1e308}}}}, "ps.parameters.weight.low: must be at least -1"),
        ({"dfs": {"repeat": {"longest": 10**9}}}, "dfs.repeat.longest: must be at most 4096 (found 1000000000)"),
        ({"dfs": {"repeat": {"times": [2, 10**9]}}}, "dfs.repeat.times.1: must be at most 64 (found 1000000000)"),
        ({"joint": True, "ps": BY_GRADIENT, "dfs": BY_GRADIENT}, "joint: moves weights and gates by their gradient"),
        ({"joint": True, "space": "hybrid", "ps": BY_GRADIENT}, "joint: moves weights and gates by their"),
        (
            {"joint": True, "space": "hybrid", "ps": BY_GRADIENT, "dfs": {"order": [1, 0], **BY_GRADIENT}},
            "joint: dfs.order [1, 0] is without the merged model, which has number 2",
        ),
        (
            {"joint": True, "space": "hybrid", "dfs": BY_GRADIENT, "ps": {**BY_GRADIENT, "first": {}}},
            "joint: there is one stage, and none before it",
        ),
        ({"dfs": {"terms": 2, "scales": "slot"}}, "dfs: terms: 2 go with gates and free ends; write scales: gate"),
        ({"dfs": {"terms": 2, "ends": "paper"}}, "dfs: terms: 2 go with gates and free ends; write scales: gate"),
        ({"space": "dfs", "dfs": {"terms": 3}}, "dfs.terms: a hop has a layer of every source that is laid out, which are 2"),
        (
            {"space": "hybrid", "dfs": {"terms": 2}},
            "dfs.terms: a hop has a layer of every source that is laid out, which are 3",
        ),
        ({"dfs": {"initialisation": "zero"}}, "dfs.initialisation"),
        ({"fitness": {"task": "magic"}}, "fitness: unknown task 'magic'"),
        ({"fitness": {}}, "fitness: task: which one?"),
        ({"fitness": {"task": "likelihood", "colour": 1}}, "fitness: colour: no such key; "),
        (
            {"fitness": {"task": "lm_eval"}, "data": {"search": {"jsonl": "x.jsonl"}}},
            "data.search: the documents of fitness.task lm_eval are its own; write lm_eval: [a task, ...]",
        ),
    ],
)
def test_refusals(more: dict[str, Any], message: str) -> None:
    """Each wrong file is refused in one line that begins with the key."""
    with pytest.raises(SearchError) as caught:
        _config(**more)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not re.search("Input should|a valid|Field|constrained|Error", str(caught.value))


def test_range_complaints_say_what_is_wrong() -> None:
    """A range the wrong way round, and a start outside it, are explained."""
    with pytest.raises(SearchError, match=r"low 1\.0 is not below high 0\.0"):
        _config(ps={"parameters": {"weight": {"low": 1, "high": 0}}})
    with pytest.raises(SearchError, match=r"start 2\.0 is outside 0\.0 to 1\.0"):
        _config(ps={"parameters": {"weight": {"low": 0, "high": 1, "start": 2}}})


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    """Every key of a file arrives where it belongs, numbers and flags as such."""
    file = tmp_path / "search.yaml"
    file.write_text(
        "space: hybrid\nsources: [{model: a}, {model: b, revision: main}]\nbase: {model: c}\nseed: 3\nbatch: 20\n"
        "ps:\n  method: dare_ties\n  options: {normalize: false, lambda: {low: 0.5, high: 1.5}}\n  blocks_per_group: model\n"
        "  parameters: {weight: {low: 0, high: 2, start: 1}, density: 0.5}\n"
        "  optimizer: {evaluations: 40, sigma: 1e-1, restarts: ipop}\n"
        "dfs: {order: [2, 0], scales: matrix, scale_bounds: [0.5, 2], initialisation: paper}\n"
        "fitness: {task: likelihood}\ndata: {search: {jsonl: s.jsonl}, test: {jsonl: t.jsonl}}\n"
    )
    config = SearchConfig.load(str(file))
    assert config.ps.options["normalize"] is False
    assert config.ps.parameters["weight"].start_fraction == 0.5  # type: ignore[union-attr]
    assert config.ps.parameters["density"] == 0.5
    assert (config.ps.optimizer.evaluations, config.ps.optimizer.sigma) == (40, 0.1)
    assert config.dfs.order == [2, 0]
    assert set(config.data) == {"search", "test"}


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    """A complaint about a file begins with its name."""
    file = tmp_path / "search.yaml"
    file.write_text("space: ps\n")
    with pytest.raises(SearchError) as caught:
        SearchConfig.load(str(file))
    assert str(caught.value).startswith(f"{file}: sources: is missing")
    with pytest.raises(SearchError, match="cannot be read"):
        SearchConfig.load(str(tmp_path / "absent.yaml"))


def test_a_saved_search_is_the_same_search(tmp_path: Path) -> None:
    """What is written to YAML, or kept in a study, reads back as the same search, also where the data has defaults."""
    data = {"search": {"jsonl": "a.jsonl", "count": 3}, "test": {"dataset": "name", "split": "test"}}
    config = _config(data=data, ps={"options": {"lambda": {"low": 0, "high": 2}}}, dfs={"scale_bounds": [0.5, 2]})
    config.save(tmp_path / "search.yaml")
    assert SearchConfig.load(tmp_path / "search.yaml") == config
    assert validate(SearchConfig, config.model_dump(mode="json"), SearchError) == config
    fine = _config(ps={"groups": "tensor", "optimizer": {"algorithm": "gradient"}})
    assert validate(SearchConfig, fine.model_dump(mode="json"), SearchError) == fine


@pytest.mark.parametrize(
    ("more", "sizes"),
    [
        ({}, {5: (5,), 20: (16,), 63: (16,), 64: (16, 32), 128: (16, 32, 64), 1000: (16, 32, 64, 128, 256)}),
        ({"batch": 30}, {20: (20,), 128: (30,)}),
        ({"batch": 30, "ps": {"optimizer": {"batch": "all"}}}, {20: (20,), 128: (128,)}),
        ({"batch": "all", "ps": {"optimizer": {"batch": 8}}}, {5: (5,), 128: (8,)}),
        ({"preset": "quick"}, {1: (1,), 8: (4,), 16: (4,), 30: (8,), 128: (8,)}),
        ({"batch": "all"}, {20: (20,), 128: (128,)}),
        ({"ps": {"optimizer": {"algorithm": "gradient"}}}, {3: (3,), 10: (8,), 128: (8,)}),
        ({"ps": {"optimizer": {"algorithm": "random"}}}, {128: (128,)}),
    ],
    ids=["default", "number", "all of a space", "number of a space", "quick", "all", "gradient", "random"],
)
def test_batches_grow_up_to_half_of_the_examples(more: dict[str, Any], sizes: dict[int, tuple[int, ...]]) -> None:
    """Generations have 16 examples at first and at most half of them later, unless the file says it; random search has all."""
    config = _config(**more, baselines=["random"])
    assert {count: config.stages[0].batch_sizes(count) for count in sizes} == sizes
    assert config.stages[-1].batch_sizes(128) == (128,)


def test_a_joint_search_is_one_stage() -> None:
    """Where weights and gates move together there is one stage, with the evaluations and minutes of both spaces."""
    ps, dfs = ({"optimizer": {"algorithm": "gradient", "evaluations": n, "minutes": n / 2}} for n in (10, 20))
    config = _config(space="hybrid", joint=True, ps=ps, dfs=dfs, baselines=["random"])
    assert [stage.name for stage in config.stages] == ["joint", "random"]
    assert [(stage.evaluations, stage.minutes) for stage in config.stages] == [(30, 15.0)] * 2
    assert [stage.batch_sizes(100) for stage in config.stages] == [(8,), (100,)]


QUICK: dict[str, Any] = {"preset": "quick", "base": {"model": "c"}}


def test_quick_fills_in_what_the_file_leaves_unsaid() -> None:
    """48 scores: by gradient on runs of rows where there is one, else CMA-ES on three groups; a hybrid search shares them."""
    ps = _config(**QUICK).ps
    assert (ps.groups, ps.starts) == ("rows", ["average", "sum", "sources"])
    assert (ps.optimizer.algorithm, ps.optimizer.evaluations) == ("gradient", 48)
    for more in (
        {"fitness": {"task": "generation"}},
        {"ps": {"method": "sce", "options": {"select_topk": {"low": 0.1, "high": 1}}}},
    ):
        ps = _config(**{**QUICK, **more}).ps
        assert (ps.groups, ps.optimizer.algorithm, ps.optimizer.evaluations) == (3, "cma", 48)
    hybrid = _config(**QUICK, space="hybrid")
    assert [part.optimizer.evaluations for part in (hybrid.ps, hybrid.dfs)] == [24, 24]
    assert hybrid.dfs.optimizer.algorithm == "gradient"
    assert _config(**QUICK, space="dfs", dfs={"scales": "slot"}).dfs.optimizer.algorithm == "cma"
    assert _config(preset="quick").ps.starts == ["average", "sum", "sources"]
    assert _config(preset="quick", ps={"method": "linear"}).ps.starts == ["average", "sources"]
    assert _config().ps.optimizer.evaluations == 1000


def test_what_the_file_says_stays() -> None:
    """A preset changes nothing that is written, and reads back from a study's settings as the same search."""
    said = {"blocks_per_group": 4, "starts": [], "optimizer": {"evaluations": 20, "algorithm": "cma"}}
    config = _config(**QUICK, ps=said)
    assert config.ps == _config(ps=said).ps
    assert validate(SearchConfig, config.model_dump(mode="json"), SearchError) == config
    for wrong in ({"ps": 3}, {"ps": {"optimizer": 3}}, {"space": "no"}, {"fitness": {"task": "magic"}}, {"preset": "slow"}):
        with pytest.raises(SearchError, match=next(iter(wrong))):
            _config(**{**QUICK, **wrong})
    with pytest.raises(SearchError, match=r"ps\.starts: metagpt is made of task vectors; give a base"):
        _config(ps={"starts": ["metagpt"]})
