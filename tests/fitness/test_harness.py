import copy
import json
import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import DataSpec, Example, LmEvalSpec, LmEvalTask, Scores, chat_process, load_examples
from hf_evomerge.fitness.chat_process import ChatError
from hf_evomerge.fitness.harness import load_tasks
from hf_evomerge.recipes.strict_yaml import validate

from .conftest import WORDS

CHOICE: dict[str, Any] = {
    "task": "tiny_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "{{answer}}",
    "fewshot_split": "train",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
WRITE: dict[str, Any] = {
    "task": "tiny_write",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{options[answer]}}",
    "generation_kwargs": {"until": ["18"], "max_gen_toks": 6, "do_sample": False},
    "filter_list": [
        {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(\\S+)"}, {"function": "take_first"}]},
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
ROLLING: dict[str, Any] = {
    "task": "tiny_rolling",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}
KINDS = [CHOICE, WRITE, ROLLING]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three tasks of different kinds, as files beside their documents."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    lines = []
    for _ in range(12):
        options = rng.sample(WORDS[:8], 3)
        question = " ".join(rng.choices(WORDS, k=rng.randint(2, 9)))
        lines.append(json.dumps({"question": question, "options": options, "answer": rng.randrange(3)}))
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(lines[:4] if name == "train" else lines[4:]), encoding="utf-8")
    files = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    for kind in KINDS:
        own = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", **kind}
        (folder / f"{kind['task']}.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    return {kind["task"]: str(folder / f"{kind['task']}.yaml") for kind in KINDS}


@pytest.fixture(scope="module")
def own(
    tasks: dict[str, str], model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What lm_eval's own interface says of the saved model."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arguments = {"pretrained": str(folder), "dtype": "float32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip and git for seconds
        return lm_eval.simple_evaluate(
            "hf",
            arguments,
            [*tasks.values()],
            num_fewshot=2,
            device="cpu",
            bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False),
        )


def score(model: Any, tokenizer: Any, names: list[str], data: dict[str, Any] | None = None, **keys: Any) -> Scores:
    """What a model scores on documents of tasks."""
    task = LmEvalTask(LmEvalSpec(num_fewshot=2, **keys))
    task.prepare(load_examples(DataSpec(lm_eval=names, **(data or {}))), tokenizer)
    return task.evaluate(model)


def changed(task: str, change: dict[str, Any], folder: Path) -> str:
    """The file of a task with other keys."""
    text = yaml.safe_dump({**yaml.safe_load(Path(task).read_text(encoding="utf-8")), **change})
    (folder / "task.yaml").write_text(text.replace("'!function utils.prompt'", "!function utils.prompt"), encoding="utf-8")
    return str(folder / "task.yaml")


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("tiny_choice", None),
        ("tiny_choice", "acc_norm"),
        ("tiny_write", None),
        ("tiny_write", "exact_match,whole"),
        ("tiny_rolling", None),
        ("tiny_rolling", "bits_per_byte"),
    ],
)
def test_equals_lm_eval_on_the_saved_model(kind, metric, tasks, own, model, tokenizer):
    """Each document has the score that lm_eval's own interface logs, and their mean is its result."""
    first = {"tiny_choice": "acc", "tiny_write": "exact_match", "tiny_rolling": "word_perplexity"}
    name, _, chosen = (metric or first[kind]).partition(",")
    chosen = chosen or ("first" if kind == "tiny_write" else "none")
    logged = [sample for sample in own["samples"][kind] if sample["filter"] == chosen]
    scores = score(model, tokenizer, [tasks[kind]], metric=metric)
    result = own["results"][kind][f"{name},{chosen}"]
    if kind == "tiny_rolling":
        totals, counts = np.array([sample[name] for sample in logged]).T
        assert scores.values == pytest.approx(totals / counts, abs=1e-6)
        weighted = (scores.values * counts).sum() / counts.sum()
        assert result == pytest.approx(np.exp(-weighted) if name == "word_perplexity" else -weighted / np.log(2), rel=1e-5)
        assert scores.correct is None
    else:
        assert scores.values.tolist() == [sample[name] for sample in logged]
        assert scores.mean == pytest.approx(result)
        assert scores.accuracy == scores.mean
    if kind == "tiny_write":
        assert scores.outputs == [sample["resps"][0][0] for sample in logged]
        assert len(set(scores.outputs)) > 1
    else:
        assert scores.outputs is None


def test_documents_are_examples(tasks, model, tokenizer):
    """Slices with one seed part a task's documents, whose scores are those of the whole, in the order of the examples."""
    names = [tasks["tiny_choice"], tasks["tiny_rolling"]]
    seeded = {"shuffle_seed": 5}
    task = LmEvalTask(LmEvalSpec(metric={"tiny_choice": "acc_norm"}))
    parts = [load_examples(DataSpec(lm_eval=names, **seeded, **cut)) for cut in ({"count": 6}, {"start": 6})]
    found: dict[str, float] = {}
    for part in (*parts, load_examples(DataSpec(lm_eval=names))):
        task.prepare(part, tokenizer)
        values = dict(zip([example.id for example in part], task.evaluate(model).values, strict=True))
        assert all(found.get(name, value) == pytest.approx(value, abs=1e-6) for name, value in values.items())
        found.update(values)
    assert len(found) == 16


def test_leaves_everything_as_it_was(tasks, model, tokenizer):
    """Neither the model, nor the tokenizer, nor any generator of random numbers is changed; a second time gives the same."""
    before, padding = {name: value.clone() for name, value in model.state_dict().items()}, tokenizer.padding_side
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    first = score(model, tokenizer, [tasks["tiny_write"], tasks["tiny_choice"]])
    assert first == score(model, tokenizer, [tasks["tiny_write"], tasks["tiny_choice"]])
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()) == states
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert tokenizer.padding_side == padding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doc_to_text": "!function utils.prompt"}, "cannot be read, or names code: .*function"),
        ({"class": "utils.Task"}, "class may lead to code"),
        ({"include": "/etc/passwd"}, "include may lead to code"),
        ({"metric_list": [{"metric": "my/metric"}]}, "the metric .*my/metric.* would be fetched as code"),
        ({"dataset_path": "pandas"}, r"its data would be read by code \(pickle, or a script\)"),
        ({"task": ["a", "b"]}, "task.yaml: task: must be a text"),
        (
            {"generation_kwargs": {"custom_generate": "utils", "trust_remote_code": True}, "test_split": "nowhere"},
            r"task.yaml: generation_kwargs.custom_generate: no such key; there are do_sample, .*, until",
        ),
        ({"generation_kwargs": {"max_gen_tok": 9}}, r"max_gen_tok: no such key; did you mean max_gen_toks\?"),
        ({"generation_kwargs": {"num_beams": 65}}, r"task.yaml: generation_kwargs.num_beams: must be at most 64 \(found 65\)"),
        ({"metric_list": [{"metric": ["acc"]}]}, r"metric_list.0.metric: must be a text \(found \['acc'\]\)"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "metric_list.0.hf_evaluate: must be False"),
        ({"doc_to_text": "{{ ''.__class__.__mro__ }}"}, "SecurityError|unsafe"),
        ({"test_split": "nowhere"}, "cannot be loaded: .*nowhere"),
        ({"dataset_kwargs": {"data_files": "nowhere.jsonl"}}, "cannot be loaded: .*nowhere.jsonl.*without a network only"),
    ],
)
def test_refuses_files(change, message, tasks, tmp_path):
    """A task's file that would run code, by whichever way, or that cannot be loaded, is refused in one line."""
    (tmp_path / "utils.py").write_text("raise SystemExit('this has run')\n", encoding="utf-8")
    with pytest.raises(FitnessError, match=message) as refusal:
        load_examples(DataSpec(lm_eval=[changed(tasks["tiny_choice"], change, tmp_path)]))
    assert len(str(refusal.value).splitlines()) == 1


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "change",
    [
        {"doc_to_text": LOOP},
        {"doc_to_text": "{{ ('a' * 99999999).replace('a', 'a' * 99999999) }}"},
        {"doc_to_target": "{% if answer == 2 %}" + LOOP + "{% endif %}{{answer}}"},
    ],
)
def test_templates_without_end(change, tasks, tmp_path, monkeypatch):
    """A task's template that loops, doubles or backtracks is one line, also where only some documents make it do so."""
    monkeypatch.setattr(chat_process, "CPU_SECONDS", 1)
    with pytest.raises(FitnessError, match="takes more than 1 s or 2 GiB"):
        load_examples(DataSpec(lm_eval=[changed(tasks["tiny_choice"], change, tmp_path)]))


@pytest.mark.parametrize(
    "change",
    [
        {"filter_list": [{"name": "slow", "filter": [{"function": "regex", "regex_pattern": r"(\S+\S+)+\$"}]}]},
        {"metric_list": [{"metric": "exact_match", "regexes_to_ignore": [r"(\S+\S+)+\$"]}]},
        {"doc_to_choice": "{{ options if options[0] == 'x' else (" + "'" + "x" * 40 + "' | regex_replace('(x+x+)+y', '')) }}"},
        {"fewshot_config": {"sampler": "first_n", "doc_to_text": LOOP}},
    ],
)
def test_what_a_task_file_does_without_end_while_it_scores_is_ended(change, tasks, model, tokenizer, tmp_path, monkeypatch):
    """A filter or a metric that backtracks, a few-shot template that loops: one error, before the search has a candidate."""
    monkeypatch.setattr(chat_process, "CPU_SECONDS", 1)
    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM.generate_until", lambda self, requests, **_: ["x" * 60] * len(requests)
    )
    kind = "tiny_choice" if "doc_to_choice" in change else "tiny_write"
    with pytest.raises((ChatError, FitnessError), match="takes more than 1 s or 2 GiB"):
        score(model, tokenizer, [changed(tasks[kind], change, tmp_path)])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"metric": "acc_nrom"}, "metric: tiny_choice has no 'acc_nrom'; did you mean acc_norm"),
        ({"metric": {"tiny": "acc"}}, "metric: 'tiny' is no task here"),
        ({"chat": True}, "the tokenizer has no chat template; leave out chat"),
    ],
)
def test_refuses_settings(keys, message, tasks, tokenizer):
    """Metrics, tasks and templates that there are not are named before any model is scored."""
    task = LmEvalTask(LmEvalSpec(**keys))
    with pytest.raises(FitnessError, match=message):
        task.prepare(load_examples(DataSpec(lm_eval=[tasks["tiny_choice"]])), tokenizer)


def test_refuses_generation_keys_of_built_in_tasks(monkeypatch):
    """A task of lm_eval itself, or of a package beside it, is held to the same generation keys as a file."""

    class Config:
        generation_kwargs: ClassVar[dict[str, Any]] = {"assistant_model": "elsewhere"}

    class Manager:
        all_tasks: ClassVar[list[str]] = ["built_in"]

        def load(self, names: list[str]) -> dict[str, Any]:
            return {"tasks": {"built_in": type("Task", (), {"config": Config})}}

    load_tasks.cache_clear()
    monkeypatch.setattr("hf_evomerge.fitness.harness._manager", lambda own: Manager())
    with pytest.raises(FitnessError, match=r"^lm_eval: built_in: generation_kwargs.assistant_model: no such key"):
        load_tasks("built_in")


def test_generates_without_what_a_source_asks_for(tasks, model, tokenizer):
    """A model's own generation config does not change what lm_eval has it write."""
    wilful = copy.deepcopy(model)
    wilful.generation_config.update(suppress_tokens=list(range(3, 17)), max_time=1e-9, repetition_penalty=9.0)
    assert score(wilful, tokenizer, [tasks["tiny_write"]]) == score(model, tokenizer, [tasks["tiny_write"]])


def test_refuses_metrics_of_all_documents(tasks, tokenizer, tmp_path):
    """A metric that only many documents together have scores no example."""
    file = changed(tasks["tiny_write"], {"metric_list": [{"metric": "bleu"}]}, tmp_path)
    with pytest.raises(FitnessError, match=r"metric: bleu of tiny_write is of all documents together \(bleu\)"):
        LmEvalTask(LmEvalSpec()).prepare(load_examples(DataSpec(lm_eval=[file])), tokenizer)


def test_refuses_other_data(tokenizer):
    """Examples that are no documents of lm_eval's, and settings of records beside them, are refused."""
    with pytest.raises(FitnessError, match=r"quiz.jsonl:x: is no document of lm_eval; write data: \{search: \{lm_eval: TASK"):
        LmEvalTask(LmEvalSpec()).prepare([Example("a", "b", "quiz.jsonl:x")], tokenizer)
    with pytest.raises(FitnessError, match="'lm_eval' has prompts and answers of its own; leave out 'template'"):
        validate(DataSpec, {"lm_eval": "arc_easy", "template": "{question}"}, FitnessError)


def test_says_what_to_install(monkeypatch):
    """Where lm_eval is missing, one line says how to install it."""
    load_tasks.cache_clear()
    monkeypatch.setattr("hf_evomerge.fitness.harness.find_spec", lambda name: None)
    with pytest.raises(FitnessError, match=r"lm_eval: is not installed: pip install 'hf-evomerge\[eval\]'"):
        load_examples(DataSpec(lm_eval=["arc_easy"]))
