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
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.sources import SourceSummary
from hf_evomerge.search.phases.baselines import lora as lora_phase
from hf_evomerge.search.phases.baselines import merge_lora
from hf_evomerge.search.phases.baselines.finetune import Lora, LoraAscent, fine_tune
from hf_evomerge.search.phases.baselines.lora import LoraTrainings, fine_tuned
from hf_evomerge.search.phases.baselines.trainings import Trainings, save_adapter
from hf_evomerge.search.phases.phase import SearchRun
from hf_evomerge.search.study.study import Study


def run_of(evaluator, place, *splits):
    """State of a search that has not begun."""
    study = Study.create(place / "study", {})
    sizes = dict.fromkeys(("search", *splits), 5)
    return SearchRun(evaluator.config, study, None, SourceSummary([]), sizes, evaluator)


def tune(run, ref, cost):
    """Fine-tune a model at a high rate."""
    trainings = Trainings(run, run.evaluator, "lora", cost)
    return fine_tuned(trainings, "LoRA", "a", ref, 1e-2, cost)


@pytest.mark.slow
def test_fine_tunes_for_comparison(tiny, tmp_path, search_config, monkeypatch):
    """Every start is screened by a short training; the best of the whole ones has one row, which
    loads and says what was spent."""
    monkeypatch.setattr(lora_phase, "RATES", (1e-4, 1e-2))
    monkeypatch.setattr(lora_phase, "HIGHER", ())
    monkeypatch.setattr(lora_phase, "TRIED", (1e-2,))
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
        fitness = {
            label: study.evaluation(label, "validation").mean
            for label, _ in study.evaluated()
            if label.startswith("lora:")
        }
    short = {start: fitness.pop(f"lora:{start}:0.01:2") for start in starts}
    first, second, *_ = sorted(starts, key=lambda start: -short[start])
    rates = [f"lora:{first}:{rate}:8" for rate in ("0.0001", "0.01")]
    best = max(rates, key=fitness.__getitem__).split(":")[-2]
    assert fitness.keys() == {*rates, f"lora:{second}:{best}:8"}
    assert row.label == max(fitness, key=fitness.__getitem__)
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
    ("best", "trained", "split"),
    [
        (5e-4, [], "validation"),
        (1e-3, [3e-3], "test"),
        (3e-3, [3e-3, 1e-2], "validation"),
        (1e-2, [3e-3, 1e-2], "search"),
    ],
)
def test_rates_go_on_while_the_highest_is_the_best(
    best, trained, split, tmp_path, search_config, monkeypatch
):
    """A higher rate is trained only where the highest one so far is the best, on validation or
    else on test examples; the row has whole evaluations."""
    asked = []

    def ranked(self, label, out, cost, train, note):
        assert self.run.sizes.ranked_on == split
        rate = float(label.split(":")[-2])
        asked.append(rate)
        return -abs(math.log(rate / best))

    monkeypatch.setattr(Trainings, "ranked", ranked)
    monkeypatch.setattr(lora_phase, "_plain", lambda start, *args: SourceRef(model="tiny"))
    config = search_config("ps")
    run = run_of(Evaluator(config), tmp_path, split)
    monkeypatch.setattr(SearchRun, "searched", 7.88)
    LoraTrainings().run(run)
    assert [rate for rate in dict.fromkeys(asked) if rate > 1e-3] == trained
    (row,) = run.rows
    assert f"rate {best:g} " in row.model
    assert f"on {split} examples" in row.model
    assert "8 evaluations each" in row.model


@pytest.mark.parametrize("helps", [True, False])
def test_the_parent_that_learns_most_stands_still(helps, tmp_path, search_config, monkeypatch):
    """Beside moving weights the rate rises while that helps. Then the parent that learns most in a
    quarter of the steps is trained at this rate, and the rate rises on where it is better."""
    scores = {
        "together:0.0001:8": -5.0,
        "together:sum:0.0001:8": -4.0,
        "together:sum:0.0003:8": -3.0,
        "together:sum:0.001:8": -3.5,
        "together:still-0:0.001:2": -9.0,
        "together:still-1:0.001:2": -8.0,
        "together:still-1:0.0003:8": -2.0 if helps else -3.2,
    }
    more = {"together:still-1:0.001:8": -1.0, "together:still-1:0.003:8": -1.5} if helps else {}
    asked = []

    def ranked(self, label, out, cost, train, note):
        asked.append(label)
        self.done += cost
        return (scores | more)[label]

    monkeypatch.setattr(Trainings, "ranked", ranked)
    monkeypatch.setattr(merge_lora, "_built", lambda *args: SourceRef(model="tiny"))
    config = search_config("ps", optimize="[{by: gradient, evaluations: 8}]")
    run = run_of(Evaluator(config), tmp_path, "validation")
    merge_lora.MergeWithLora().run(run)
    assert asked == [*scores, *more]
    (row,) = run.rows
    still = "LoRA of b (rate 0.001 beside b as it is, best of 7 on"
    moved = "merge with LoRA beside it (rate 0.0003 from the sum of"
    assert row.model.startswith(still if helps else moved)
    assert row.evaluations == 5 * 8 + 2 * 2 + 8 * len(more)
    name = "together:built:still-1:0.001:8" if helps else "together:built:sum:0.0003:8"
    assert row.label == name
    assert row.against.name == ("a LoRA of b" if helps else "the merge with LoRA beside it")
    assert row.against.keep.endswith(", a LoRA of b" if helps else "LoRA beside it")


@pytest.mark.parametrize("of_adapters", [False, True])
def test_lora_learns_beside_a_merge(
    of_adapters, adapters, tmp_path, search_config, monkeypatch, caplog
):
    """One more source of an ordinary recipe: it fits better than the merge alone, is built, and is
    the same again. Its rate is the last that helped."""
    monkeypatch.setattr(merge_lora, "RATES", (1e-4, 0.01, 0.1, 100.0, 200.0))
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
    labels = {label for label, _ in kept.evaluated() if re.match(r"together:[s\d]", label)}
    means = {label: kept.evaluation(label, "validation").mean for label in labels}
    stills = {label: mean for label, mean in means.items() if ":still-" in label}
    means = {label: mean for label, mean in means.items() if label not in stills}
    lowest = {label: mean for label, mean in means.items() if ":0.0001:" in label}
    assert lowest.keys() == {"together:0.0001:20", "together:sum:0.0001:20"}
    start = max(sorted(lowest), key=lowest.__getitem__).removesuffix("0.0001:20")
    tried = [f"{start}{rate:g}:20" for rate in merge_lora.RATES if f"{start}{rate:g}:20" in means]
    assert len(means) == len(tried) + 1  # the other start has no further rates
    ranks = [means[label] for label in tried]
    best = ranks.index(max(ranks))
    of_start = " from the sum of the task vectors" if "sum" in start else ""
    rate = merge_lora.RATES[best]
    assert f"(rate {rate:g}{of_start}, best of {len(means) + 1} on validation" in row.model
    assert ranks[: best + 1] == sorted(ranks[: best + 1])
    assert len(ranks) == best + 2  # and none after the first that is no better
    # two parents in a quarter of the steps each, and the better one in all
    assert [label.endswith(":20") for label in sorted(stills)].count(True) == 1
    assert row.evaluations == 20 * len(means) + 2 * 5 + 20
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
    assert evaluator.evaluate(model, "validation").mean == pytest.approx(max(ranks), abs=1e-4)
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
    assert evaluator.evaluate(tuned.model).mean == pytest.approx(tuned.fitness, abs=1e-4)
    assert tuned.fitness > before + 0.5


def test_what_cannot_be_trained_is_left_out(tmp_path, search_config, monkeypatch, caplog):
    """A start or a rate that cannot be trained is named in a warning; the others are there."""

    def ranked(self, label, out, cost, train, note):
        _, *start, rate, _ = label.split(":")
        if float(rate) > 5e-4 or start == ["base"]:
            raise FitnessError("not finite")
        return float(rate)

    monkeypatch.setattr(Trainings, "ranked", ranked)
    monkeypatch.setattr(lora_phase, "_plain", lambda start, *args: SourceRef(model="tiny"))
    run = run_of(Evaluator(search_config()), tmp_path)
    LoraTrainings().run(run)
    (row,) = run.rows
    assert row.model.startswith("LoRA from a, rate 0.0005 (best of 4 on search examples")
    adapter = str(tmp_path / "study" / "baselines" / "source-0" / "lora-0.0005-0")
    assert row.target == SourceRef(model="tiny", adapter=adapter)
    warned = [line for line in caplog.messages if line.startswith("the results have no LoRA")]
    assert warned[0] == "the results have no LoRA from base, rate 0.0003: not finite"
    # both rates of the base, the higher one of two others, and 1e-3 of the best start
    assert len(warned) == 2 + 2 + 1


def test_a_training_is_run_once(tiny, tmp_path, search_config):
    """What has its adapter and its score in the study is not trained again; what has lost either
    is, and its time counts though another process took it."""
    evaluator = Evaluator(search_config())
    run = run_of(evaluator, tmp_path)
    first = tune(run, evaluator.config.sources[0], 3)
    adapter = Path(first.model.adapter)
    written = (adapter / "adapter_config.json").stat().st_mtime_ns
    trainings = Trainings(run, evaluator, "lora", 3)
    assert fine_tuned(trainings, "LoRA", "a", evaluator.config.sources[0], 1e-2, 3) == first
    assert trainings.seconds > 0
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
