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
from hf_evomerge.search.evaluation.tasks import MORE
from hf_evomerge.search.phases.baselines import lora as lora_phase
from hf_evomerge.search.phases.baselines import merge_lora, trainings
from hf_evomerge.search.phases.baselines.finetune import Lora, LoraAscent, fine_tune
from hf_evomerge.search.phases.baselines.lora import LoraTrainings, fine_tuned
from hf_evomerge.search.phases.baselines.trainings import (
    Course,
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
    own = Trainings(run, run.evaluator, "lora", cost, ["a"])
    return fine_tuned(own, "LoRA", ref, Course("a", 1e-2))


@pytest.mark.slow
def test_fine_tunes_for_comparison(tiny, tmp_path, search_config, monkeypatch):
    """The sum is tried at every rate, every other start at the best of them; the best of all has
    one row, which loads and says what was spent."""
    monkeypatch.setattr(trainings, "RATES", (1e-4, 1e-3, 1e-2))
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
    own = {label: scores for label, scores in ranks.items() if ":sum:" in label}
    rate = best_of(own).split(":")[-2]
    others = {f"lora:{start}:{rate}:8" for start in starts if start != "sum"}
    assert len(own) >= 2
    assert ranks.keys() >= others
    assert row.label == best_of(ranks)
    start, rate = re.fullmatch("lora:(.*):(.*):8", row.label).groups()
    assert all(f":{start}:" in label for label in ranks.keys() - own.keys() - others)
    name, plain = starts[start]
    count = len(ranks)
    assert row.model == f"LoRA from {name}, rate {rate} (best of {count} on validation examples)"
    assert (row.evaluations, row.retained["old"].error) == (count * 8, None)
    folder = tmp_path / "baselines" / start.replace(":", "-")
    adapted = SourceRef(model=str(plain), adapter=str(folder / f"lora-{rate}-8"))
    assert Evaluator(config).evaluate(adapted, "test") == row.scores
    assert run_search(config, tmp_path, build=False).rows == result.rows


@pytest.mark.parametrize(
    ("worth", "suits", "asked"),
    [
        # the sum at rates that fall or rise while that helps, the others at its best
        ({"a": 1, "b": 5, "sum": 9}, {"sum": 1e-3}, "sum 3 10 30, a 10, b 10"),
        ({"a": 1, "b": 5, "sum": 9}, {"sum": 1e-2}, "sum 3 10 30 100, a 100, b 100"),
        ({"a": 1, "b": 5, "sum": 9}, {"sum": 1e-4}, "sum 3 10 1, a 1, b 1"),
        # another start that is the best is tried at other rates too
        ({"a": 1, "b": 9, "sum": 5}, {"sum": 3e-4, "b": 3e-3}, "sum 3 10 1, a 3, b 3 10 30 100"),
        # without a sum the first stands for it
        ({"a": 1, "b": 9}, {"a": 1e-2, "b": 3e-4}, "a 3 10 30 100, b 100 3 10 1"),
        # every sum is tried at every rate
        ({"": 1, "sum": 5, "still-sum": 9}, {}, "sum 3 10 30, still-sum 3 10 30,  10"),
    ],
)
def test_starts_and_rates(worth, suits, asked, search_config):
    """All rates are tried from the sum, and from another start where it is the best."""
    told = {}

    def train(course):
        start, rate, _ = course
        told.setdefault(start, []).append(f"{rate * 1e4:g}")
        return Scores([10 * worth[start] - abs(math.log(rate / suits.get(start, 1e-3)))])

    best = max(worth, key=worth.__getitem__)
    choice, count = best_training(dict.fromkeys(worth, "LoRA"), train)
    assert choice == Course(best, suits.get(best, 1e-3))
    assert ", ".join(f"{start} {' '.join(rates)}" for start, rates in told.items()) == asked
    assert count == sum(map(len, told.values()))
    assert abs(count - usual_cost(worth, Evaluator(search_config()).tasks)) < 4


@pytest.mark.parametrize("helps", [True, False])
def test_the_best_training_goes_on_with_more_prompts(helps):
    """The best is trained once more on more made prompts, at the next lower rate, and that one is
    taken where it is the better."""
    asked = []

    def train(course):
        asked.append(course)
        more = course.split == MORE and (1 if helps else -1)
        return Scores([(course.start == "b") - abs(course.rate - 1e-3) + more])

    choice, count = best_training(dict.fromkeys(("sum", "b"), "LoRA"), train, more=True)
    (more,) = (course for course in asked if course.split == MORE)
    assert (more, count) == (Course("b", 3e-4, MORE), len(asked))
    assert choice == (more if helps else Course("b", 1e-3))
    assert str(more) == "rate 0.0003 on more made prompts"


def test_a_training_that_fails_is_left_out(caplog):
    """A warning names it, and the best of the others is taken; without any there is none."""

    def train(course):
        if course.start == "sum":
            raise FitnessError("no memory")
        return Scores([float(course.start == "b")])

    assert best_training(dict.fromkeys(("a", "b", "sum"), "LoRA"), train)[0].start == "b"
    assert "the results have no LoRA, rate 0.001: no memory" in caplog.text
    assert best_training({"sum": "LoRA"}, train) is None


@pytest.mark.parametrize(
    ("best", "name"),
    [
        ("", "LoRA beside the merge"),
        ("sum", "LoRA beside the merge from the sum of the task vectors"),
        ("still-sum", "LoRA beside the sum of the task vectors"),
        ("still-1", "LoRA beside b"),
    ],
)
def test_what_learns_most_beside_a_lora(best, name, tmp_path, search_config, monkeypatch):
    """Weights that move, from two starts, and parents and their sum that stand still are trained;
    the best of them has the row, under its name."""
    asked = []

    def ranked(self, label, out, course, train, name):
        asked.append(label)
        self.done += self.cost
        key = label.removeprefix("together:").rpartition(":")[0].rpartition(":")[0]
        return Scores([(key == best) - float(label.split(":")[-2])])

    monkeypatch.setattr(Trainings, "ranked", ranked)
    monkeypatch.setattr(merge_lora, "_built", lambda *args: SourceRef(model="tiny"))
    config = search_config("ps", optimize="[{by: gradient, evaluations: 8}]")
    run = run_of(Evaluator(config), tmp_path, "validation")
    merge_lora.MergeWithLora().run(run)
    keys = {label.removeprefix("together:").rpartition("0.")[0] for label in asked}
    assert keys == {"", "sum:", "still-sum:", "still-0:", "still-1:"}
    (row,) = run.rows
    chosen = f"best of {len(asked)} on validation examples"
    assert row.model == f"{name}, rate 0.0001 ({chosen})"
    assert row.evaluations == 8 * len(asked)
    key = f"{best}:" if best else ""
    assert row.label == f"together:built:{key}0.0001:8"
    assert row.against.name == f"the {name}"
    assert row.against.keep.endswith(f"the {name}")


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
    assert row.against.name == "the LoRA beside the merge"
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

    def ranked(self, label, out, course, train, name):
        _, *start, rate, _ = label.split(":")
        if float(rate) > 5e-4 or start == ["base"]:
            raise FitnessError("not finite")
        return Scores([float(rate)])

    monkeypatch.setattr(Trainings, "ranked", ranked)
    monkeypatch.setattr(lora_phase, "_plain", lambda start, *args: SourceRef(model="tiny"))
    run = run_of(Evaluator(search_config()), tmp_path)
    LoraTrainings().run(run)
    (row,) = run.rows
    assert row.model.startswith("LoRA from the sum, rate 0.0003 (best of 5 on search examples")
    adapter = str(tmp_path / "study" / "baselines" / "sum" / "lora-0.0003-0")
    assert row.target == SourceRef(model="tiny", adapter=adapter)
    warned = [line for line in caplog.messages if line.startswith("the results have no LoRA")]
    assert warned == [
        "the results have no LoRA from the sum, rate 0.001: not finite",
        "the results have no LoRA from base, rate 0.0003: not finite",
    ]


def test_a_training_is_run_once(tiny, tmp_path, search_config):
    """What has its adapter and its score in the study is not trained again; what has lost either
    is, and its time counts though another process took it."""
    evaluator = Evaluator(search_config())
    run = run_of(evaluator, tmp_path)
    first = tune(run, evaluator.config.sources[0], 3)
    adapter = Path(first.model.adapter)
    written = (adapter / "adapter_config.json").stat().st_mtime_ns
    again = Trainings(run, evaluator, "lora", 3, ["a"])
    assert fine_tuned(again, "LoRA", evaluator.config.sources[0], Course("a", 1e-2)) == first
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
