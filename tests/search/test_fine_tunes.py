"""LoRA fine-tunes that a search is compared with."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from classes import random_class
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evomerge import Example, FlowPart, Recipe, SourceRef, run_search
from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import Scores
from hf_evomerge.fitness.comparison import best_of
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.sources import SourceSummary
from hf_evomerge.search.phases.baselines import lora as lora_phase
from hf_evomerge.search.phases.baselines import merge_lora, trainings
from hf_evomerge.search.phases.baselines.finetune import Lora, LoraAscent, fine_tune
from hf_evomerge.search.phases.baselines.lora import LoraTrainings, fine_tuned
from hf_evomerge.search.phases.baselines.trainings import (
    Trainings,
    best_training,
    save_adapter,
    usual_cost,
)
from hf_evomerge.search.phases.phase import SearchRun
from hf_evomerge.search.study.study import Study


def run_of(evaluator, place, *splits):
    """State of a search that has not begun."""
    study = Study.create(place / "study", {})
    sizes = dict.fromkeys(("search", *splits), 5)
    return SearchRun(evaluator.config, study, None, SourceSummary([]), sizes, evaluator)


def tune(run, ref, cost):
    """Fine-tune a model at a high rate."""
    own = Trainings(run, run.evaluator, "lora", cost)
    return fine_tuned(own, "LoRA", "a", ref, 1e-2, cost)


@pytest.mark.slow
def test_fine_tunes_for_comparison(tiny, tmp_path, search_config, monkeypatch):
    """Every start is screened by a short training; the best of the whole ones has one row, which
    loads and says what was spent."""
    monkeypatch.setattr(trainings, "RATES", (1e-4, 1e-2))
    config = search_config(
        compare={"baselines": ["lora"], "retain": {"old": {"jsonl": str(tiny / "test.jsonl")}}}
    )
    result = run_search(config, tmp_path, build=False)
    row = result.row("lora")
    assert row.seconds > 0
    starts = {
        "base": ("base", tiny / "base"),
        "source:0": ("a", tiny / "a"),
        "source:1": ("b", tiny / "b"),
        "average": ("the average", tmp_path / "baselines" / "average" / "model"),
        "sum": ("the sum", tmp_path / "baselines" / "sum" / "model"),
    }
    with Study.open(tmp_path) as study:
        ranks = {
            label: study.evaluation(label, "validation")
            for label, _ in study.evaluated()
            if label.startswith("lora:")
        }
    short = {start: ranks.pop(f"lora:{start}:0.01:2") for start in starts}
    first = best_of(short)
    second = best_of({start: short[start] for start in starts if start != first})
    rates = [f"lora:{first}:{rate}:8" for rate in ("0.0001", "0.01")]
    best = best_of({rate: ranks[rate] for rate in rates}).split(":")[-2]
    assert ranks.keys() == {*rates, f"lora:{second}:{best}:8"}
    assert row.label == best_of(ranks)
    start, rate = re.fullmatch("lora:(.*):(.*):8", row.label).groups()
    name, plain = starts[start]
    assert (
        row.model
        == f"LoRA from {name}, rate {rate} (best of 3 on validation examples, 8 evaluations each)"
    )
    assert (row.evaluations, row.retained["old"].error) == (5 * 2 + 3 * 8, None)
    folder = tmp_path / "baselines" / start.replace(":", "-")
    adapted = SourceRef(model=str(plain), adapter=str(folder / f"lora-{rate}-8"))
    assert Evaluator(config).evaluate(adapted, "test") == row.scores
    assert run_search(config, tmp_path, build=False).rows == result.rows


@pytest.mark.parametrize(
    ("worth", "suits", "asked"),
    [
        # each start until its rate, in the short trainings and in the whole ones
        (
            {"base": 0.3, "a": 0.9, "b": 0.5},
            {"base": 3e-4, "a": 1e-3, "b": 3e-3},
            ["base 3 10", "a 3 10 30", "b 3 10 30 100", "a* 1 3 10 30", "b* 10"],
        ),
        (
            {"base": 0.3, "a": 0.9, "b": 0.5},
            {"base": 3e-4, "a": 1e-4, "b": 1e-2},
            ["base 3 10", "a 3 10", "b 3 10 30 100", "a* 1 3 10", "b* 1"],
        ),
        (
            {"base": 0.3, "a": 0.5, "b": 0.9},
            {"base": 3e-4, "a": 3e-3, "b": 1e-2},
            ["base 3 10", "a 3 10 30 100", "b 3 10 30 100", "b* 1 3 10 30 100", "a* 100"],
        ),
    ],
)
def test_a_start_gets_its_rate_before_it_is_dropped(worth, suits, asked):
    """Short trainings of each start rise in rate while that helps, and so do whole ones of the best
    start; the second best has one, at the rate that was best."""
    told = []

    def train(start, rate, share):
        told.append(f"{start}{'*' * (share == 1)} {rate * 1e4:g}")
        return Scores([10 * worth[start] - abs(math.log(rate / suits[start]))])

    best = max(worth, key=worth.__getitem__)
    *choice, count = best_training(dict.fromkeys(worth, "LoRA"), train)
    assert choice == [best, suits[best]]
    expected = [f"{name} {rate}" for name, *rates in map(str.split, asked) for rate in rates]
    assert told == expected
    whole = sum("*" in each for each in told)
    assert count == whole
    assert abs(whole + (len(told) - whole) / 4 - usual_cost(3)) < 2


@pytest.mark.parametrize(
    ("best", "name", "kind"),
    [
        ("", "merge with LoRA beside it (rate 0.0003, best", "the merge with LoRA beside it"),
        (
            "sum",
            "merge with LoRA beside it (rate 0.0003 from the sum of the task vectors, best",
            "the merge with LoRA beside it",
        ),
        (
            "still-sum",
            "LoRA of the sum of the task vectors (rate 0.0003, best",
            "a LoRA of the sum of the task vectors",
        ),
        ("still-1", "LoRA of b (rate 0.0003, best", "a LoRA of b"),
    ],
)
def test_what_learns_most_beside_a_lora(best, name, kind, tmp_path, search_config, monkeypatch):
    """Weights that move, from two starts, and parents and their sum that stand still are trained
    briefly; the best of them has the row, under its name."""
    asked = []

    def ranked(self, label, out, cost, train, note):
        asked.append(label)
        self.done += cost
        key = label.removeprefix("together:").rpartition(":")[0].rpartition(":")[0]
        return Scores([(key == best) - float(label.split(":")[-2])])

    monkeypatch.setattr(Trainings, "ranked", ranked)
    monkeypatch.setattr(merge_lora, "_built", lambda *args: SourceRef(model="tiny"))
    config = search_config("ps", optimize="[{by: gradient, evaluations: 8}]")
    run = run_of(Evaluator(config), tmp_path, "validation")
    merge_lora.MergeWithLora().run(run)
    keys = ("", "sum:", "still-sum:", "still-0:", "still-1:")
    short = [f"together:{key}{rate}:2" for key in keys for rate in ("0.0003", "0.001")]
    assert asked[: len(short)] == short
    (row,) = run.rows
    assert row.model.startswith(name.replace("rate 0.0003", "rate 0.0001"))
    assert row.evaluations == len(short) * 2 + 8 * (len(asked) - len(short))
    key = f"{best}:" if best else ""
    assert row.label == f"together:built:{key}0.0001:8"
    assert row.against.name == kind
    assert row.against.keep.endswith(kind)


@pytest.mark.parametrize("of_adapters", [False, True])
def test_lora_learns_beside_a_merge(
    of_adapters, adapters, tmp_path, search_config, monkeypatch, caplog
):
    """One more source of an ordinary recipe: it fits better than the merge alone, is built, and is
    the same again."""
    monkeypatch.setattr(trainings, "RATES", (1e-4, 0.01, 0.1))
    monkeypatch.setattr(merge_lora, "_starts", lambda *args: {"": merge_lora.Begin()})
    settings = {
        "optimize": "[{by: gradient, evaluations: 20, batch: 4}]",
        "output": "{dtype: float32}",
    }
    config = search_config(
        compare="{baselines: [merge+lora]}", **settings, **(adapters if of_adapters else {})
    )
    study = tmp_path / "study"
    result = run_search(config, study, build=False)
    row = result.row("together")
    built = study / "model-with-lora"
    kept = Study.open(study)
    labels = {label for label, _ in kept.evaluated() if re.match(r"together:\d.*:20$", label)}
    best = best_of({label: kept.evaluation(label, "validation") for label in labels})
    fitness = kept.evaluation(best, "validation").mean
    assert row.seconds > 0
    assert row.scores.error is None
    assert not re.search("adapter says that it is of|no adapter", caplog.text)
    assert row.against.name == "the merge with LoRA beside it"
    recipe = Recipe.load(built / "recipe.yaml")
    assert recipe.sources[:2] == list(config.sources)
    assert recipe.sources[2].model == config.base.model
    assert recipe.merge.parameters[2] == {"weight": 1.0}
    model = SourceRef(model=str(built))
    if of_adapters:
        model = config.base.model_copy(update={"adapter": str(built)})
    evaluator = Evaluator(config)
    assert evaluator.evaluate(model, "test") == row.scores
    # ranked with the adapters inside the live merge
    assert evaluator.evaluate(model, "validation").mean == pytest.approx(fitness, abs=1e-4)
    assert evaluator.evaluate(model).mean > evaluator.evaluate(result.winner).mean + 0.1
    moved = tmp_path / "moved"
    shutil.copytree(study, moved, ignore=shutil.ignore_patterns("model-with-lora"))
    monkeypatch.chdir(tmp_path)
    assert run_search(config, Path("moved"), build=False).rows == result.rows
    # built again, where the study is now
    assert (moved / "model-with-lora" / "recipe.yaml").exists()
    # with a path of this machine
    assert not list((study / "baselines").rglob("README.md"))
    again = tmp_path / "again"
    run_search(config, again, build=False)
    (weights,) = built.glob("*.safetensors")
    assert (again / "model-with-lora" / weights.name).read_bytes() == weights.read_bytes()


def test_an_adapter_replaces_that_of_a_killed_search(tiny, tmp_path):
    """An adapter that was written before its score was stored is written again when the search
    goes on."""
    tuned = LoraAscent(AutoModelForCausalLM.from_pretrained(tiny / "base"), Lora(1e-3, 1)).tuned
    for _ in range(2):
        save_adapter(tuned, tmp_path / "adapter")
    assert [each.name for each in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_names_its_modules_in_order(tiny, tmp_path):
    """The modules in the adapter's config are sorted, so that the same training writes the same
    file."""
    model = AutoModelForCausalLM.from_pretrained(tiny / "base")
    LoraAscent(model, Lora(1e-3, 1)).tuned.save_pretrained(tmp_path)
    modules = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(modules) > 6
    assert modules == sorted(modules)


def test_a_training_leaves_paths_alone(tmp_path, search_config):
    """Where paths run through resident sources, training adapters for a source does not change what
    a path scores."""
    evaluator = Evaluator(search_config("dfs", output="{dtype: float32}"))
    path = evaluator.config.recipe(flow=FlowPart(path=["0:0", "1:1", "0:1"]))
    before = evaluator.evaluate(path)
    tune(run_of(evaluator, tmp_path), evaluator.config.sources[0], 200)
    assert (before.error, evaluator.evaluate(path)) == (None, before)


def test_a_classifier_is_trained_too(tiny, tmp_path, search_config):
    """An adapter for a classifier, which does not generate, is trained on its labels, read again
    and scored."""
    random_class("bert", 0).save_pretrained(tmp_path / "a")
    AutoTokenizer.from_pretrained(tiny / "a").save_pretrained(tmp_path / "a")
    ref = SourceRef(model=str(tmp_path / "a"))
    colors = ("red", "green", "blue")
    config = search_config(
        sources=[ref, ref], base=None, merge="{method: linear}", fitness="{task: classification}"
    )
    examples = {"search": [Example(str(i), color, color) for i, color in enumerate(colors)]}
    evaluator = Evaluator(config, examples=examples)
    before = evaluator.evaluate(ref).mean
    tuned = tune(run_of(evaluator, tmp_path), ref, 60)
    assert evaluator.evaluate(tuned.model).mean == pytest.approx(tuned.scores.mean, abs=1e-4)
    assert tuned.scores.mean > before + 0.5


def test_what_cannot_be_trained_is_left_out(tmp_path, search_config, monkeypatch, caplog):
    """A start or a rate that cannot be trained is named in a warning; the others are there."""

    def ranked(self, label, out, cost, train, note):
        _, *start, rate, _ = label.split(":")
        if float(rate) > 5e-4 or start == ["base"]:
            raise FitnessError("not finite")
        return Scores([float(rate)])

    monkeypatch.setattr(Trainings, "ranked", ranked)
    monkeypatch.setattr(lora_phase, "_plain", lambda start, *args: SourceRef(model="tiny"))
    run = run_of(Evaluator(search_config()), tmp_path)
    LoraTrainings().run(run)
    (row,) = run.rows
    assert row.model.startswith("LoRA from a, rate 0.0003 (best of 3 on search examples")
    adapter = str(tmp_path / "study" / "baselines" / "source-0" / "lora-0.0003-0")
    assert row.target == SourceRef(model="tiny", adapter=adapter)
    warned = [line for line in caplog.messages if line.startswith("the results have no LoRA")]
    assert warned[0] == "the results have no LoRA from base, rate 0.0003: not finite"
    # both rates of the base, the higher one of four others, and 1e-3 of the best start
    assert len(warned) == 2 + 4 + 1


def test_a_training_is_run_once(tiny, tmp_path, search_config):
    """What has its adapter and its score in the study is not trained again; what has lost either
    is, and its time counts though another process took it."""
    evaluator = Evaluator(search_config())
    run = run_of(evaluator, tmp_path)
    first = tune(run, evaluator.config.sources[0], 3)
    adapter = Path(first.model.adapter)
    written = (adapter / "adapter_config.json").stat().st_mtime_ns
    again = Trainings(run, evaluator, "lora", 3)
    assert fine_tuned(again, "LoRA", "a", evaluator.config.sources[0], 1e-2, 3) == first
    assert again.seconds > 0
    assert (adapter / "adapter_config.json").stat().st_mtime_ns == written
    shutil.rmtree(adapter)
    assert tune(run, evaluator.config.sources[0], 3) == first
    assert adapter.exists()


@pytest.fixture
def tuned(tiny, search_config):
    """Trains a source, and returns the model, the task, and its score before."""
    evaluator = Evaluator(search_config(output="{dtype: float32}"))
    ref = SourceRef(model=str(tiny / "a"))
    make_task = evaluator.tasks.differentiable_task
    given = (evaluator.tasks.examples("search"), evaluator.tasks.tokenizer(ref))

    def train(settings, **more):
        plain = AutoModelForCausalLM.from_pretrained(tiny / "a", dtype=torch.float32)
        task = make_task()
        task.prepare(*given)
        before = task.evaluate(plain)
        return before, task.evaluate(fine_tune(plain, make_task, *given, settings, **more))

    return train


def test_a_fine_tune_climbs(tuned):
    """Training raises the score on what it is trained on, gives the same adapter again, and spends
    what the cost pays for."""
    settings = Lora.for_cost(200, 5, rate=5e-3)
    assert (settings.steps, settings.batch) == (66, 5)
    assert Lora.for_cost(75, 128, rate=1e-3).steps == 400
    before, after = tuned(settings)
    assert after.mean > before.mean + 0.5
    assert tuned(settings) == (before, after)


@pytest.mark.parametrize(("steps", "peak"), [(4, 1), (30, 3)])
def test_short_trainings_reach_their_rate(tuned, steps, peak):
    """The rate rises over a tenth of the steps, and over one at least: Adam's first step is then as
    long as the rate."""
    moved = []

    def after(step, model):
        if step == 1:  # Adam's first step moves each number by the rate
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    moved.append(float(value.detach().abs().max()))

    tuned(Lora(1e-2, steps), after_step=after)
    assert max(moved) == pytest.approx(1e-2 / peak, rel=1e-3)
