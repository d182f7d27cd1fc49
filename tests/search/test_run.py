"""Whole searches of tiny models: what is left behind, killing and resuming, and what is refused before anything begins."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from watch import Watch

from hf_evomerge.building.build import build_model
from hf_evomerge.errors import EvoMergeError, FitnessError, RecipeError, SearchError, SourceError
from hf_evomerge.fitness import DataSpec, Example, FunctionTask
from hf_evomerge.recipes.recipe import Recipe, SourceRef
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search import baselines, memory
from hf_evomerge.search.answers import Answer, describe_answers, export_answers, study_answers
from hf_evomerge.search.baselines import tuned_models
from hf_evomerge.search.callbacks import Progress
from hf_evomerge.search.config import STAGES, SearchConfig
from hf_evomerge.search.evaluation import evaluate_model
from hf_evomerge.search.evaluator import Evaluator
from hf_evomerge.search.finetune import Lora, fine_tune
from hf_evomerge.search.folder import check_out, edits
from hf_evomerge.search.places import settings_of
from hf_evomerge.search.plan import plan_search
from hf_evomerge.search.results import Result
from hf_evomerge.search.run import resume_search, run_search
from hf_evomerge.search.runner import LocalRunner
from hf_evomerge.search.salvage import check_study
from hf_evomerge.search.show import describe_model, describe_study
from hf_evomerge.search.spaces import uniform_average
from hf_evomerge.search.study import Study

Settings = Callable[..., dict[str, Any]]
Config = Callable[..., SearchConfig]


def _facts(folder: Path) -> dict[str, list[Any]]:
    """Everything that a study holds of its trials but the seconds."""
    tables = {
        "trials": "stage, number, generation, state, genome, recipe, duplicate_of, fitness, scores, correct, error, cost, "
        "gradient",
        "recipes": "key, yaml",
        "evaluations": "label, split, fitness, scores, correct, error",
    }
    connection = sqlite3.connect(folder / "study.db")
    facts = {
        name: connection.execute(f"SELECT {columns} FROM {name} ORDER BY 1, 2").fetchall() for name, columns in tables.items()
    }
    connection.close()
    return facts


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("space", "pictures"),
    [
        ("ps", {"fitness.png", "weights.png"}),
        ("dfs", {"fitness.png", "path.png"}),
        ("hybrid", {"fitness.png", "weights.png", "path.png"}),
    ],
)
def test_what_a_search_leaves(space: str, pictures: set[str], search_config: Config, tmp_path: Path) -> None:
    """A search leaves its settings, every trial, the winner's recipe and model, the comparison and the pictures; all agree."""
    config = search_config(space, baselines=["average", "random"])
    out = tmp_path / "deep" / "out"
    result = run_search(config, out)
    assert {item.name for item in out.iterdir() if not item.name.startswith(("study.db-", "study.db."))} == {
        *("model", "plots", "recipe.yaml", "results.json", "search.yaml", "study.db")
    }
    assert SearchConfig.load(out / "search.yaml") == config
    assert Recipe.load(out / "recipe.yaml") == Recipe.load(out / "model" / "recipe.yaml") == result.winner
    if space != "hybrid":  # there the winner may be that of the first stage
        assert {picture.name for picture in (out / "plots").iterdir()} == pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in (out / "plots").iterdir())
    budget = 16 if space == "hybrid" else 8
    study = Study.open(out)
    counted = [(trial.stage, trial.state) for trial in study.trials()]
    assert counted.count(("random", "COMPLETE")) == budget
    assert len(counted) == 2 * budget
    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (report["split"], report["examples"], report["space"]) == ("test", 6, space)
    assert [(row["stage"], row["model"]) for row in report["rows"]] == [(row.stage, row.model) for row in result.rows]
    assert [row["evaluations"] for row in report["rows"] if row["stage"] == "random"] == [budget]
    winners = [row for row in report["rows"] if row["winner"]]
    assert len(winners) == 1
    assert winners[0]["stage"] != "random"
    assert f"fitness {winners[0]['fitness']:.3f}" in str(evaluate_model(str(out / "model"), config))
    assert winners[0]["fitness"] == pytest.approx(study.evaluation(result.winner.key, "test").mean)  # type: ignore[union-attr]


def test_a_finished_search_evaluates_nothing(search_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running a finished search again gives the same result and evaluates nothing; a model that was lost is built again."""
    config = search_config("dfs")
    first = run_search(config, tmp_path)
    before = _digests(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    jobs: list[Any] = []
    usual = LocalRunner.run
    monkeypatch.setattr(LocalRunner, "run", lambda self, given: (jobs.extend(given), usual(self, given))[1])
    second = resume_search(tmp_path)
    built = (tmp_path / "model").stat().st_ino
    resume_search(tmp_path)
    assert (tmp_path / "model").stat().st_ino == built
    assert jobs == []
    assert _table(first) == _table(second)
    assert _digests(tmp_path / "model") == before


def _table(result: Result) -> list[Any]:
    return [(row.model, row.scores.values.tolist(), row.evaluations, row.seconds, row.winner) for row in result.rows]


def test_no_model(search_config: Config, tmp_path: Path) -> None:
    """Without building, the recipe is left and no model."""
    run_search(search_config(), tmp_path, build=False)
    assert (tmp_path / "recipe.yaml").is_file()
    assert not (tmp_path / "model").exists()


STRANGER = """
import json, sys
sys.modules["hf_evomerge"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.tensor([tokenizer(sys.argv[2])["input_ids"]])
print(json.dumps([type(model).__name__, model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist()]))
"""


def test_the_winner_loads_without_the_package(search_config: Config, tmp_path: Path) -> None:
    """A data flow winner loads where this package cannot be imported, and generates the same tokens as here."""
    run_search(search_config("dfs"), tmp_path)
    folder, prompt = tmp_path / "model", "w1 w2 7 w3"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", STRANGER, str(folder), prompt]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    kind, tokens = json.loads(done.stdout.splitlines()[-1])
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]])
    assert kind == type(model).__name__ == "EvoMergedForCausalLM"
    assert tokens == model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist()


def _children(pid: int) -> list[int]:
    """Live descendants of a process."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [grandchild for child in children for grandchild in _children(child)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _count_trials(folder: Path) -> int:
    if not (folder / "study.db").exists():
        return 0
    connection = sqlite3.connect(folder / "study.db")
    try:
        return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0])
    finally:
        connection.close()


def _stop_in_mid_generation(search: subprocess.Popen[bytes], folder: Path, population: int) -> None:
    """Stop the search where its last generation is unfinished."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert search.poll() is None, "the search ended before it could be stopped"
        if _count_trials(folder) > population:
            search.send_signal(signal.SIGSTOP)
            if _count_trials(folder) % population:
                return
            search.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    raise AssertionError("no trials")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_killed_and_resumed(search_config: Config, tmp_path: Path) -> None:
    """A search killed in mid-generation leaves no worker, and resumed it ends with the trials of one that never stopped."""
    optimizer = {"evaluations": 40, "population": 5}
    config = search_config(
        "hybrid",
        ps={"method": "dare_linear", "blocks_per_group": 1, "optimizer": optimizer},
        dfs={"repetitions": 2, "initialisation": "paper", "optimizer": {**optimizer, "evaluations": 20, "sigma": 0.5}},
        batch=4,
    )
    config.save(tmp_path / "given.yaml")
    command = [sys.executable, "-m", "hf_evomerge", "search", "given.yaml", "--out", "killed", "--workers", "2"]
    search = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _stop_in_mid_generation(search, tmp_path / "killed", 5)
        workers = _children(search.pid)
    finally:
        search.kill()
        search.wait()
    assert len(workers) >= 2
    deadline = time.monotonic() + 30
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, workers))
    done = _count_trials(tmp_path / "killed")
    assert 5 < done < 40
    assert not (tmp_path / "killed" / "recipe.yaml").exists()

    reports: list[Progress] = []
    resume_search(tmp_path / "killed", callbacks=[Watch(reports.append)])
    run_search(config, tmp_path / "whole")
    left = sum(trial.cost for trial in Study.open(tmp_path / "whole").trials("ps")[done:])
    assert max(report.fresh for report in reports if report.phase == "ps") == pytest.approx(left)
    assert _facts(tmp_path / "killed") == _facts(tmp_path / "whole")
    assert _digests(tmp_path / "killed" / "model") == _digests(tmp_path / "whole" / "model")
    for name in ("recipe.yaml", "search.yaml"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


GRADIENT = {"algorithm": "gradient", "evaluations": 12}
BY_GRADIENT: dict[str, dict[str, Any]] = {
    "ps": {"ps": {"method": "ties", "groups": "tensor", "optimizer": GRADIENT}, "batch": 2},
    "dfs": {"dfs": {"optimizer": {**GRADIENT, "evaluations": 30}}, "batch": 2},
    "hybrid": {"ps": {"optimizer": GRADIENT}, "dfs": {"repetitions": 1, "optimizer": {**GRADIENT, "evaluations": 40}}},
    "terms": {"space": "dfs", "dfs": {"terms": 2, "optimizer": {**GRADIENT, "evaluations": 30}}, "batch": 2},
    "joint terms": {
        "space": "hybrid",
        "joint": True,
        "ps": {"optimizer": GRADIENT},
        "dfs": {"terms": 3, "optimizer": {**GRADIENT, "sigma": 0.3}},
        "batch": 2,
    },
    "joint": {"space": "hybrid", "joint": True, "ps": {"optimizer": GRADIENT}, "dfs": {"optimizer": GRADIENT}, "batch": 2},
}


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_a_search_by_gradient(name: str, search_config: Config, tmp_path: Path) -> None:
    """A search by gradient keeps its budget, climbs, holds each step's gradient, and a trial's score is its recipe's."""
    config = search_config(**{"space": name, **BY_GRADIENT[name]})
    result = run_search(config, tmp_path, build=False)
    study, evaluator = Study.open(tmp_path), Evaluator(config)
    for stage in config.stages:
        trials = study.trials(stage)
        assert sum(trial.cost for trial in trials) <= config.budget(stage)[0] + 1e-9
        steps = [trial for trial in trials if trial.scores.gradient is not None]
        assert len(steps) > 2
        assert all(trial.scores.gradient.shape == trial.genome.shape for trial in steps)  # type: ignore[union-attr]
        whole = [trial for trial in trials if trial.scores.values.size == 5]
        assert trials[-1] is whole[-1]
        for trial in (whole[-1], *(trial for trial in steps if trial.scores.values.size == 5)):
            again = evaluator.evaluate(study.recipe(trial.recipe_key or ""))
            assert np.allclose(again.values, trial.scores.values, rtol=1e-3, atol=1e-4)
    for row in (row for row in result.rows if row.stage in STAGES):
        counted = study.trials() if name == "hybrid" and row.stage == "dfs" else study.trials(row.stage)
        assert row.evaluations == round(sum(trial.cost for trial in counted), 2)
    if name not in ("dfs", "terms"):
        start = evaluator.evaluate(study.recipe(study.trials(config.stages[0])[0].recipe_key or "")).mean
        assert study.best(config.stages[0])[0].fitness > start  # type: ignore[operator]


@pytest.mark.parametrize(
    "groups", ["tensor", ["*self_attn*", "*layers.1.mlp*", "default"], ["embed", "*mlp*", "blocks.1.attn", "default"]]
)
def test_groups_by_name(groups: Any, search_config: Config, tmp_path: Path) -> None:
    """A search over tensors or name patterns ends with its pictures, is shown, and builds what its recipe says."""
    config = search_config("ps", ps={"groups": groups, "optimizer": GRADIENT})
    result = run_search(config, tmp_path)
    assert result.winner.merge is not None
    names = result.winner.merge.parameters[0]["weight"]
    assert isinstance(names, dict)
    assert list(names) == groups or (groups == "tensor" and "model.layers.1.mlp.up_proj.weight" in names)
    assert {picture.name for picture in (tmp_path / "plots").iterdir()} == {"fitness.png", "weights.png"}
    assert "task_arithmetic" in describe_study(tmp_path)
    assert "*mlp*" in describe_model(tmp_path / "model") or "*mlp*" not in groups
    assert Recipe.load(tmp_path / "model" / "recipe.yaml") == result.winner


def test_a_winner_of_several_terms_is_built(search_config: Config, tmp_path: Path) -> None:
    """The model on disk of weights and gates that were found together scores what the search said, sums included."""
    config = search_config(**BY_GRADIENT["joint terms"])
    result = run_search(config, tmp_path)
    assert result.winner.flow is not None
    assert any("+" in hop for hop in result.winner.flow.path)
    built = evaluate_model(str(tmp_path / "model"), config).scores
    assert np.allclose(built.values, result.row("joint").scores.values, atol=1e-4)
    assert "joint: " in describe_study(tmp_path)
    assert {picture.name for picture in (tmp_path / "plots").iterdir()} == {"fitness.png", "weights.png", "path.png"}


@pytest.mark.parametrize(("name", "stage", "workers"), [("dfs", "dfs", 2), ("joint terms", "joint", 0)])
def test_a_search_by_gradient_killed_and_resumed(
    name: str, stage: str, workers: int, search_config: Config, tmp_path: Path
) -> None:
    """Killed in the middle of its steps and resumed, with other workers or none, it ends with the same trials and gradients."""
    config = search_config(**{"space": name, **BY_GRADIENT[name]})
    run_search(config, tmp_path / "whole", build=False)
    count = len(Study.open(tmp_path / "whole").trials(stage))

    class KilledError(Exception):
        """As if the process had been killed."""

    seen: list[Progress] = []

    def kill(progress: Progress) -> None:
        seen.extend([progress] if progress.phase == stage else [])
        if len(seen) == count // 2:
            raise KilledError

    with pytest.raises(KilledError):
        run_search(config, tmp_path / "killed", build=False, callbacks=[Watch(kill)])
    resume_search(tmp_path / "killed", workers=workers, build=False)
    assert _facts(tmp_path / "killed") == _facts(tmp_path / "whole")


FIRST = {"evaluations": 12, "fitness": {"task": "likelihood"}}
BY_BOTH: dict[str, dict[str, Any]] = {
    "ps": {"ps": {"first": FIRST, "optimizer": {"evaluations": 10, "population": 4}}},
    "dfs": {"dfs": {"first": {**FIRST, "evaluations": 30}, "optimizer": {"evaluations": 10, "population": 4}}},
}


@pytest.mark.parametrize(("space", "dies_in"), [("ps", "ps-first"), ("dfs", "dfs")])
def test_gradient_first_then_evolution(space: str, dies_in: str, search_config: Config, tmp_path: Path) -> None:
    """One study holds the gradient on the likelihood and the evolution on answers; killed in either, it ends the same."""
    config = search_config(space, **BY_BOTH[space], fitness={"task": "generation", "extract": "all", "max_new_tokens": 2})
    result = run_search(config, tmp_path / "whole", build=False)
    study = Study.open(tmp_path / "whole")
    first, then = study.trials(f"{space}-first"), study.trials(space)
    assert sum(trial.scores.gradient is not None for trial in first) > 2
    assert all((trial.fitness or 0) < 0 for trial in first)
    assert {value for trial in then for value in trial.scores.values.tolist()} <= {0.0, 1.0}
    assert then[0].recipe_key == study.best(f"{space}-first")[0].recipe_key
    assert [row.stage for row in result.rows[-2:]] == [f"{space}-first", space]
    pictures = {picture.name for picture in (tmp_path / "whole" / "plots").iterdir()}
    assert pictures == {"fitness.png", "fitness-first.png", "weights.png" if space == "ps" else "path.png"}

    class KilledError(Exception):
        """As if the process had been killed."""

    def kill(progress: Progress) -> None:
        if progress.phase == dies_in and progress.fresh >= 3:
            raise KilledError

    with pytest.raises(KilledError):
        run_search(config, tmp_path / "killed", build=False, callbacks=[Watch(kill)])
    resume_search(tmp_path / "killed", build=False)
    assert _facts(tmp_path / "killed") == _facts(tmp_path / "whole")


@pytest.mark.parametrize(
    ("space", "more", "message"),
    [
        (
            "ps",
            {"fitness": {"task": "generation"}, "ps": {"first": {}}},
            "fitness.task: generation has no gradient; use likelihood, or optimizer: {",
        ),
        (
            "ps",
            {"ps": {"first": {"fitness": {"task": "generation"}}}},
            "fitness.task: generation has no gradient; use likelihood, or optimizer: {",
        ),
        ("dfs", {"dfs": {"scales": "slot", "first": {}}}, "first.algorithm: gradient goes with gates; write scales: gate"),
        (
            "ps",
            {"fitness": {"task": "generation"}},
            "fitness.task: generation has no gradient; use likelihood, or optimizer: {",
        ),
        ("ps", {"ps": {"method": "model_stock", "optimizer": GRADIENT}}, "every parameter of model_stock is fixed"),
        (
            "ps",
            {"ps": {"method": "sce", "options": {"select_topk": {"low": 0.1, "high": 1}}, "optimizer": GRADIENT}},
            "sce has no",
        ),
        (
            "ps",
            {
                "ps": {
                    "method": "ties",
                    "parameters": {"weight": 0.5, "density": {"low": 0.2, "high": 1}},
                    "optimizer": GRADIENT,
                }
            },
            "ps.optimizer.algorithm: a gradient moves no density; give weight a range, or write cma",
        ),
        (
            "dfs",
            {"dfs": {"scales": "slot", "optimizer": GRADIENT}},
            "optimizer.algorithm: gradient goes with gates; write scales",
        ),
        ("dfs", {"dfs": {"scales": "gate", "scale_target": "mlp_delta"}}, "scales: gate is a factor of the stream"),
        ("dfs", {"dfs": {"scales": "slot", "ends": "free"}}, "ends: free goes with gates; with scales: slot leave it out"),
    ],
)
def test_gradients_that_are_not_to_be_had(
    space: str, more: dict[str, Any], message: str, search_config: Config, tmp_path: Path
) -> None:
    """A task, a method, an encoding or a scale target without a gradient is refused before anything runs, with what to do."""
    settings = {**BY_GRADIENT[space], **more}
    with pytest.raises(EvoMergeError) as caught:
        run_search(search_config(space, **settings), tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def begun(search_config: Config, tmp_path: Path) -> Iterator[Path]:
    """A folder with a study that holds no trials."""
    Study.create(tmp_path / "begun", search_config().model_dump(mode="json")).close()
    return tmp_path / "begun"


def test_other_settings_are_refused(begun: Path, search_config: Config) -> None:
    """A folder with the study of other settings is refused, with each key that differs and both of its values."""
    optimizer = {"evaluations": 9, "population": 4}
    other = search_config(seed=3, ps={"blocks_per_group": "model", "optimizer": optimizer})
    with pytest.raises(SearchError) as caught:
        run_search(other, begun)
    for part in (str(begun), "seed was 0 and is 3", "ps.optimizer.evaluations was 8 and is 9", "choose another folder"):
        assert part in str(caught.value)
    assert "population" not in str(caught.value)


def test_settings_that_an_older_version_did_not_know(search_config: Config, tmp_path: Path) -> None:
    """A study without a key that is not set goes on; without one that is set it is refused by that key."""
    settings = search_config().model_dump(mode="json")
    assert settings["ps"].pop("first") is None
    Study.create(tmp_path / "old", settings).close()
    check_out(search_config(), tmp_path / "old")
    del settings["finalists"]
    Study.create(tmp_path / "older", settings).close()
    with pytest.raises(SearchError, match="finalists was 8 and is 2"):
        check_out(search_config(), tmp_path / "older")


def test_a_search_that_was_killed_at_its_very_begin(begun: Path, search_config: Config) -> None:
    """Where only the study was made when the search was killed, resuming leaves the search file as well."""
    resume_search(begun, build=False)
    assert SearchConfig.load(begun / "search.yaml") == search_config()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"ps": {"method": "dare_tise"}}, RecipeError, "'dare_tise' is not known"),
        ({"ps": {"parameters": {"wait": 1.0}}}, SearchError, r"ps\.parameters\.wait: task_arithmetic has no such parameter"),
        ({"ps": {"options": {"density": 1.0}}}, SearchError, r"ps\.options\.density"),
        ({"ps": {"method": "slerp", "sources": [0], "options": {"t": {"low": 0, "high": 2}}}}, EvoMergeError, "out of range"),
        ({"base": None}, RecipeError, "name the base model"),
        ({"base": {"model": "./nowhere/base"}}, SourceError, "./nowhere/base: no such folder"),
        ({"sources": [{"model": "./nowhere/a"}, {"model": "./nowhere/b"}]}, SourceError, "./nowhere/a: no such folder"),
        ({"data": {"search": {"jsonl": "nowhere.jsonl"}}}, FitnessError, "nowhere.jsonl: cannot be read"),
        ({"device": "toaster"}, SearchError, "device: 'toaster' cannot be used here: "),
        ({"data": {}}, FitnessError, r"data\.search: not given"),
    ],
)
def test_refused_before_anything_begins(
    changes: dict[str, Any], kind: type[EvoMergeError], message: str, search_config: Config, tmp_path: Path
) -> None:
    """What cannot work is refused with one line that names it, before a folder or a study is made."""
    out = tmp_path / "out"
    with pytest.raises(kind, match=message) as caught:
        run_search(search_config(**changes), out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_sources_that_do_not_fit_are_refused(tiny: Path, search_config: Config, tmp_path: Path) -> None:
    """Sources of different depth cannot be merged, nor layers of different width share a path, and no study is made."""
    deep = [{"model": str(tiny / "a")}, {"model": str(tiny / "deep")}]
    with pytest.raises(SourceError, match=r"number of layers differs: 2 in .* 3 in "):
        run_search(search_config(sources=deep), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tiny / "a")
    wide = type(model)(type(model.config)(**{**model.config.to_dict(), "hidden_size": 32, "head_dim": 16}))
    wide.save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(tiny / "a").save_pretrained(tmp_path / "wide")
    for space in ("dfs", "hybrid"):
        with pytest.raises(SourceError, match=r"head_dim .*16"):
            run_search(
                search_config(space, sources=[{"model": str(tiny / "a")}, {"model": str(tmp_path / "wide")}]), tmp_path / "out"
            )
    assert not (tmp_path / "out").exists()


def test_nothing_of_the_users_is_overwritten(search_config: Config, tmp_path: Path) -> None:
    """A folder that holds a model, a recipe or another search file, and no study, is refused and left as it was."""
    config = search_config()
    search_config(seed=1).save(tmp_path / "search.yaml")
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


def test_overlapping_splits_are_refused(tiny: Path, search_config: Config, tmp_path: Path) -> None:
    """Splits that share a prompt are refused, naming the place."""
    data = {split: {"jsonl": str(tiny / f"{name}.jsonl")} for split, name in (("search", "search"), ("test", "search"))}
    with pytest.raises(FitnessError, match=r"the splits overlap: .*search\.jsonl:1 \(search\)"):
        run_search(search_config(data=data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_budget_in_minutes(search_config: Config, tmp_path: Path) -> None:
    """A search with a budget in minutes ends after a whole generation long before its trials are spent, and does not grow."""
    ps = {"blocks_per_group": "model", "optimizer": {"evaluations": 10**6, "population": 4, "minutes": 0.01}}
    config = search_config(ps=ps)
    result = run_search(config, tmp_path, build=False)
    count = _count_trials(tmp_path)
    assert 4 <= count < 2000
    assert count % 4 == 0
    assert result.rows[-1].evaluations == count
    run_search(config, tmp_path, build=False)
    assert _count_trials(tmp_path) == count


def weight_score(model: Any, tokenizer: Any, examples: list[Example]) -> list[float]:
    """Nearness of the first weight of the head to 0.1, for every example."""
    return [-abs(float(model.get_output_embeddings().weight[3, 3]) - 0.1)] * len(examples)


def test_a_fitness_of_ones_own(search_config: Config, tmp_path: Path) -> None:
    """A task and examples may come from Python: the search maximises what the function returns."""
    examples = {"search": [Example("w1", "2")], "test": [Example("w2", "3")]}
    config = search_config(
        data={},
        ps={"blocks_per_group": "model", "parameters": {"weight": {"low": -9, "high": 9}}, "optimizer": {"evaluations": 40}},
    )
    result = run_search(config, tmp_path, task_factory=lambda: FunctionTask(weight_score), examples=examples, build=False)
    parents = [row.scores.mean for row in result.rows[:3]]
    assert result.rows[-1].scores.mean > max(fitness for fitness in parents if fitness is not None)
    assert result.rows[-1].scores.mean > -0.05
    assert (tmp_path / "recipe.yaml").is_file()


def test_data_from_a_function_is_not_for_a_file(search_config: Config, tmp_path: Path) -> None:
    """A search whose records come from a Python function runs, though its settings cannot name the function."""
    records = [{"prompt": f"w{number}", "answer": "1"} for number in range(4)]
    config = search_config().model_copy(update={"data": {"search": DataSpec(function=lambda: records)}})
    result = run_search(config, tmp_path, build=False)
    assert result.split == "search"
    assert np.isfinite(result.rows[-1].scores.values).all()


def test_a_quick_search(search_settings: Settings, tmp_path: Path) -> None:
    """A file that names the preset and no optimizer is a whole search of at most 48 scores, by gradient, from a good start."""
    settings = search_settings("ps", preset="quick", batch=2)
    del settings["ps"], settings["dfs"]
    result = run_search(validate(SearchConfig, settings, SearchError), tmp_path, build=False)
    trials = Study.open(tmp_path).trials("ps")
    assert [trial.scores.gradient is None for trial in trials[:3]] == [True, True, False]  # the middle is the average
    assert trials[2].genome.tolist() == max(trials[:2], key=lambda trial: trial.fitness or -99).genome.tolist()
    assert 45 < result.row("ps").evaluations <= 48


def test_plan(search_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan says what each phase does, adds up their times, counts workers where they help, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    plan = plan_search(search_config("hybrid", baselines=["average", "random"]))
    assert plan.dimensions == {"ps": 2, "dfs": 6}
    assert plan.evaluations == {"ps": 8, "dfs": 8, "random": 16}
    assert plan.examples == {"search": 5, "validation": 4, "test": 6}
    text = {phase.name: phase.text for phase in plan.phases}
    assert list(text) == ["parents", "ps", "dfs", "random", "finalists", "test"]
    assert text["parents"] == "3 models on all search examples"
    assert text["ps"] == "task_arithmetic, 2 numbers to evolve, 8 evaluations, 2 generations of 4 on 5 of 5 examples"
    assert text["dfs"].startswith("gate, 6 numbers to evolve, 8 evaluations, paths of ")
    assert text["finalists"] == "up to 6 models on 4 validation examples"
    assert text["test"] == "7 models on 6 test examples: all rows of the table"
    assert all(0 < phase.seconds < 60 for phase in plan.phases)
    assert plan.minutes() == pytest.approx(sum(phase.seconds for phase in plan.phases) / 60)
    assert plan.minutes(2) == pytest.approx(plan.minutes() / 2)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_of_a_gradient(search_config: Config) -> None:
    """Steps wait for each other, so workers do not shorten them, and cost three scores of their batch each."""
    config = search_config("ps", ps={"groups": "tensor", "optimizer": {**GRADIENT, "evaluations": 60}}, batch=1)
    plan = plan_search(config)
    (stage,) = (phase for phase in plan.phases if phase.name == "ps")
    assert stage.at_once == 1
    assert "60 evaluations, 95 gradient steps on 1 of 5 examples" in stage.text
    others = sum(phase.seconds for phase in plan.phases if phase.at_once > 1)
    assert plan.minutes(2) * 60 == pytest.approx(stage.seconds + others / 2)
    fitness = {"task": "generation", "extract": "all", "max_new_tokens": 2}
    small = plan_search(search_config("ps", ps={"method": "ties", "optimizer": {**GRADIENT, "evaluations": 2}}))
    assert "ps: a gradient moves no density: those numbers stay at their start" in small.notes
    assert any("do for 0.0 gradient steps" in warning for warning in small.warnings)
    parts = plan_search(search_config("ps", ps={"optimizer": {**GRADIENT, "evaluations": 60}}, batch=2, gradient_parts=2))
    assert [phase.at_once for phase in parts.phases if phase.name == "ps"] == [2]
    both = plan_search(search_config("ps", **BY_BOTH["ps"], fitness=fitness))
    assert [phase.name for phase in both.phases] == ["parents", "ps-first", "ps", "finalists", "test"]
    assert "up to 2 models" in both.phases[3].text


def test_a_plan_warns(search_config: Config, search_settings: Settings) -> None:
    """Small or missing splits and budgets of few generations are named, with what to do."""
    data = search_settings()["data"]
    config = search_config(
        "ps", ps={"optimizer": {"evaluations": 9, "population": 8}}, data={"search": data["search"], "validation": data["test"]}
    )
    warnings = "\n".join(plan_search(config).warnings)
    assert "data.test: not given: the table is measured on what the winner was chosen on" in warnings
    assert "search: 5 examples: the standard error of an accuracy is up to 0.22" in warnings
    assert "ps: evaluations: 9 do for 1.1 generations of 8, and fewer than 2 hardly move" in warnings
    assert "ps" not in "".join(plan_search(search_config("ps")).warnings)
    plan = plan_search(search_config("ps", baselines=["average", "lora"], retain={"general": data["test"]}))
    text = {phase.name: phase.text for phase in plan.phases}
    assert text["lora"] == "6 fine-tunes at 8 evaluations each"
    assert text["test"] == "7 models on 6 test + 6 retain:general examples: all rows of the table"


def test_what_is_said_of_a_search(search_config: Config, search_settings: Settings, tiny_half: Path) -> None:
    """The plan notes sections that nobody looks at, and half precision on a processor; a preset does not warn of itself."""
    gates = {"scales": "gate", "repetitions": 1}
    assert not any("not looked at" in note for note in plan_search(search_config("hybrid")).notes)
    unused = search_config("ps", dfs=gates, batch=1)
    assert plan_search(unused).notes[0] == ("dfs: is not looked at, for space is ps; leave it out, or write space: hybrid")
    for optimizer, said in (
        ({"algorithm": "gradient", "population": 4, "batch": 2}, ["population"]),
        ({"algorithm": "random", "batch": 2, "restarts": "ipop", "population": 4}, ["batch", "restarts"]),
        ({"algorithm": "cma", "population": 4, "batch": 2, "restarts": "ipop"}, []),
    ):
        plan = plan_search(search_config("ps", dfs={}, ps={"optimizer": {"evaluations": 8, **optimizer}}))
        assert [note for note in plan.notes if "looked" in note] == [
            f"ps: optimizer.{key} is not looked at by algorithm: {optimizer['algorithm']}; leave it out" for key in said
        ]
    half = plan_search(search_config("ps", tiny_half, dfs={}))
    assert [note.partition(":")[0] for note in half.notes] == ["dtype"]
    assert not plan_search(search_config("ps", tiny_half, dfs={}, dtype="float32")).notes
    quick = {key: value for key, value in search_settings("ps").items() if key not in ("ps", "dfs")}
    warnings = plan_search(validate(SearchConfig, {**quick, "preset": "quick"}, SearchError)).warnings
    assert not any("hardly move" in line for line in warnings)


@pytest.mark.parametrize(
    ("device", "threads", "models", "workers"),
    [
        ("cpu", 1, 10**9, 16),
        ("cpu", 4, 10**9, 4),
        ("cpu", 32, 10**9, 1),
        ("cuda:0", 1, 10**9, 1),
        (["cuda:0", "cuda:1"], 1, 10**9, 2),
        ("cpu", 1, 30 * 10**9, 2),
    ],
)
def test_workers_by_default(
    device: Any, threads: int, models: int, workers: int, search_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads times workers are no more than the cores, the models of all workers fit into memory, and each GPU has one."""
    monkeypatch.setattr(memory, "cores", lambda: 16)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2 * 10**7, "SC_PAGE_SIZE": 4096}.__getitem__)
    config = search_config("ps", device=device, threads=threads)
    assert memory.default_workers(config, {"parents": 10**8, "ps": models}) == workers


def test_evaluate_model_needs_only_the_model(tiny: Path, search_config: Config) -> None:
    """One model is scored by a search's task and data even where the search's own sources are not there."""
    config = search_config(sources=[{"model": "./nowhere/a"}, {"model": "./nowhere/b"}], base=None)
    evaluation = evaluate_model(str(tiny / "a"), config, split="validation", show=2)
    assert (evaluation.scores.values.size, len(evaluation.examples), len(evaluation.answers)) == (4, 4, 2)
    text = str(evaluation)
    assert text.startswith("fitness -")
    assert text.splitlines()[0].endswith("on 4 examples")
    assert (text.count("expected: "), text.count("answered: ")) == (2, 2)
    with pytest.raises(SourceError, match="no such folder"):
        evaluate_model("./nowhere/model", config)


def test_answers_and_what_is_retained(tiny: Path, tmp_path: Path, search_config: Config) -> None:
    """A search on generated answers keeps each of them, says which were cut, and scores every model on retained data too."""
    fitness = {"task": "generation", "max_new_tokens": 2, "extract": "all"}
    old = [{"prompt": f"w1 w2 {number}", "answer": "w3"} for number in range(4)]
    (tmp_path / "old.jsonl").write_text("\n".join(map(json.dumps, old)), encoding="utf-8")
    retained = {"old": {"jsonl": str(tmp_path / "old.jsonl")}}
    config = search_config(fitness=fitness, retain=retained)
    result = run_search(config, tmp_path, build=False)
    assert [list(row.retained) for row in result.rows] == [["old"]] * len(result.rows)
    assert all(row.retained["old"].values.size == 4 for row in result.rows)
    assert any("On old, which was not searched on" in sentence for sentence in result.verdict)
    study = Study.open(tmp_path)
    for number, trial in enumerate(study.trials("ps")):
        outputs, cut = study.answers(f"ps:{number}")
        assert (outputs is None) == (trial.duplicate_of is not None)
        assert outputs is None or (cut is not None and len(outputs) == cut.size == 5)
    study.close()
    target = SourceRef(model=str(tiny / "a"))
    evaluator = Evaluator(config)
    scores = evaluator.evaluate(target, "test")
    exported = list(study_answers(tmp_path))
    mine = [answer for answer in exported if (answer.model, answer.split) == ("a", "test")]
    assert [answer.answer for answer in mine] == scores.outputs
    assert scores.truncated is not None
    assert [answer.truncated for answer in mine] == scores.truncated.tolist()
    assert mine[0].expected == evaluator.examples("test")[0].answer
    assert export_answers(tmp_path, tmp_path / "answers.jsonl") == len(exported)
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [Answer(**json.loads(line)) for line in lines] == exported
    assert describe_answers(tmp_path, 2).count("expected: ") == 2
    evaluation = evaluate_model(str(tiny / "a"), config, show=3)
    assert list(evaluation.answers) == (scores.outputs or [])[:3]


def test_data_that_cannot_serve_is_refused_before_a_model_is_loaded(
    tiny: Path, tmp_path: Path, search_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are no numbers, and retained examples that the search looks at, are refused by file and line."""
    monkeypatch.setattr(Evaluator, "model", None)
    with pytest.raises(FitnessError, match=r"search\.jsonl:1: the answer .* is not a number"):
        run_search(search_config(fitness={"task": "generation"}), tmp_path / "a")
    same = search_config(retain={"old": {"jsonl": str(tiny / "validation.jsonl")}})
    with pytest.raises(FitnessError, match=r"retain\.old: .*validation\.jsonl:1 is .* of the validation split"):
        run_search(same, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


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
    settings = Lora.for_cost(200, len(evaluator.examples("search")), rate=5e-3)
    assert (settings.steps, settings.batch) == (66, 5)
    assert Lora.for_cost(75, 128, rate=1e-3).steps == 200
    arguments: Any = (evaluator.differentiable_task, evaluator.examples("search"), evaluator.tokenizer(ref), settings)
    trained = []
    for _ in range(2):
        model = fine_tune(AutoModelForCausalLM.from_pretrained(tiny / "a", dtype=torch.float32), *arguments)
        task = evaluator.differentiable_task()
        task.prepare(evaluator.examples("search"), evaluator.tokenizer(ref))
        trained.append(task.evaluate(model))
    assert before is not None
    assert trained[0].mean is not None
    assert trained[0].mean > before + 0.5
    assert trained[0] == trained[1]


def test_a_study_does_not_depend_on_the_current_directory(
    tiny: Path, tmp_path: Path, search_settings: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that was begun with relative names goes on from elsewhere, with the same trials, and its recipe builds there."""
    monkeypatch.chdir(tiny)
    settings = search_settings("ps", Path("."))
    settings["sources"] = [{"model": "./a"}, {"model": "b"}]
    result = run_search(validate(SearchConfig, settings, SearchError), tmp_path / "out", build=False)
    monkeypatch.chdir(tmp_path)
    again = resume_search("out", build=False)
    assert again.to_json() == result.to_json()
    assert again.winner == result.winner
    assert build_model(Recipe.load("out/recipe.yaml"), "built", progress=False).is_dir()
    assert [source.model for source in SearchConfig.load("out/search.yaml").sources] == [str(tiny / "a"), str(tiny / "b")]
    monkeypatch.chdir(tiny)
    repeated = run_search(validate(SearchConfig, settings, SearchError), tmp_path / "out", build=False)
    assert repeated.to_json() == result.to_json()


@pytest.mark.parametrize("how", ["copied", "alone"])
def test_a_study_moves_with_its_data(
    how: str, tiny: Path, tmp_path: Path, search_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that is copied with sources and data beside it goes on there, as if it had never been elsewhere; one
    that is moved without them reads them where they are. What it leaves names the places of today, and only those."""
    old, new = tmp_path / "old" / "place", tmp_path / "new"
    shutil.copytree(tiny, old / "data")
    config = validate(SearchConfig, search_settings("ps", old / "data"), SearchError)
    whole = run_search(config, tmp_path / "whole", build=False)
    _stopped_after(5, config, old / "study")
    if how == "alone":
        shutil.move(old / "study", new / "study")
    else:
        shutil.copytree(old, new)
    monkeypatch.chdir(tmp_path / "old")
    result = resume_search(new / "study")
    data = old / "data" if how == "alone" else new / "data"
    assert [ref.model for ref in result.winner.sources] == [str(data / "a"), str(data / "b")]
    assert [row.scores.values.tolist() for row in result.rows] == [row.scores.values.tolist() for row in whole.rows]
    before, after = (_facts(folder) for folder in (tmp_path / "whole", new / "study"))
    assert [(*row[:5], *row[6:]) for row in after["trials"]] == [(*row[:5], *row[6:]) for row in before["trials"]]
    for file in ("search.yaml", "recipe.yaml", "model/recipe.yaml"):
        assert (str(old) in (new / "study" / file).read_text()) == (how == "alone")
    assert not check_study(new / "study").damaged
    assert edits(new / "study", settings_of(Study.open(new / "study")), {}) is None
    repeated = run_search(validate(SearchConfig, search_settings("ps", data), SearchError), new / "study")
    assert repeated.to_json() == result.to_json()


def _stopped_after(trials: int, config: SearchConfig, out: Path) -> None:
    """Run a search that is interrupted after so many trials."""

    def interrupt(progress: Progress) -> None:
        if progress.phase == "ps" and progress.done >= trials:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(config, out, callbacks=[Watch(interrupt)])


def test_other_examples_are_refused(tmp_path: Path, search_config: Config) -> None:
    """A study goes on only with the examples it was begun with, even where a data file has kept its name."""
    config = search_config("ps")
    run_search(config, tmp_path / "out", build=False)
    file = Path(str(config.data["search"].jsonl))
    text = file.read_text(encoding="utf-8")
    file.write_text("\n".join(reversed(text.splitlines())) + "\n", encoding="utf-8")
    try:
        with pytest.raises(SearchError, match=r"the search examples \(changed\) are not what this study was begun on"):
            run_search(config, tmp_path / "out", build=False)
    finally:
        file.write_text(text, encoding="utf-8")
