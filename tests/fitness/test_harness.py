import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import DataSpec, Example, LmEvalSpec, LmEvalTask, load_examples
from hf_evomerge.fitness.tasks.harness import load_tasks
from hf_evomerge.recipes.strict_yaml import validate

from .conftest import WORDS, refused

CHOICE = {
    "task": "tiny_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "{{answer}}",
    "fewshot_split": "train",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
WRITE = {
    "task": "tiny_write",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{options[answer]}}",
    "generation_kwargs": {"until": ["18"], "max_gen_toks": 6, "do_sample": False},
    "filter_list": [
        {
            "name": "first",
            "filter": [
                {"function": "regex", "regex_pattern": "(\\S+)"},
                {"function": "take_first"},
            ],
        },
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
ROLLING = {
    "task": "tiny_rolling",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}
KINDS = [CHOICE, WRITE, ROLLING]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Three tasks of different kinds, as files beside their documents."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    lines = []
    for _ in range(12):
        options = rng.sample(WORDS[:8], 3)
        question = " ".join(rng.choices(WORDS, k=rng.randint(2, 9)))
        lines.append(
            json.dumps({"question": question, "options": options, "answer": rng.randrange(3)})
        )
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text(
            "\n".join(lines[:4] if name == "train" else lines[4:]), encoding="utf-8"
        )
    files = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    for kind in KINDS:
        own = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            **kind,
        }
        (folder / f"{kind['task']}.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    return {kind["task"]: str(folder / f"{kind['task']}.yaml") for kind in KINDS}


@pytest.fixture(scope="module")
def own(tasks, model, tokenizer, tmp_path_factory):
    """What lm_eval's own interface says of the saved model."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arguments = {"pretrained": str(folder), "dtype": "float32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "lm_eval.evaluator.add_env_info", lambda results: None
        )  # asks pip and git for seconds
        return lm_eval.simple_evaluate(
            "hf",
            arguments,
            [*tasks.values()],
            num_fewshot=2,
            device="cpu",
            bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False),
        )


def read(spec):
    """The documents of tasks, with consent to load their files."""
    return load_examples(spec, trust_remote_code=True)


def trusting(spec):
    """A task that may load task files."""
    task = LmEvalTask(spec)
    task.trust_remote_code = True
    return task


def score(model, tokenizer, names, data=None, **keys):
    """What a model scores on documents of tasks."""
    task = trusting(LmEvalSpec(num_fewshot=2, **keys))
    task.prepare(read(DataSpec(lm_eval=names, **(data or {}))), tokenizer)
    return task.evaluate(model)


def changed(task, change, folder):
    """The file of a task with other keys."""
    text = yaml.safe_dump({**yaml.safe_load(Path(task).read_text(encoding="utf-8")), **change})
    (folder / "task.yaml").write_text(
        text.replace("'!function utils.prompt'", "!function utils.prompt"), encoding="utf-8"
    )
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
    """Each document has the score that lm_eval's own interface logs, and their mean is its
    result."""
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
        assert result == pytest.approx(
            np.exp(-weighted) if name == "word_perplexity" else -weighted / np.log(2), rel=1e-5
        )
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
    """Slices with one seed part a task's documents, whose scores are those of the whole, in the
    order of the examples."""
    names = [tasks["tiny_choice"], tasks["tiny_rolling"]]
    seeded = {"shuffle_seed": 5}
    task = trusting(LmEvalSpec(metric={"tiny_choice": "acc_norm"}))
    parts = [read(DataSpec(lm_eval=names, **seeded, **cut)) for cut in ({"count": 6}, {"start": 6})]
    found = {}
    for part in (*parts, read(DataSpec(lm_eval=names))):
        task.prepare(part, tokenizer)
        values = dict(
            zip([example.id for example in part], task.evaluate(model).values, strict=True)
        )
        assert all(
            found.get(name, value) == pytest.approx(value, abs=1e-6)
            for name, value in values.items()
        )
        found.update(values)
    assert len(found) == 16


def test_leaves_everything_as_it_was(tasks, model, tokenizer):
    """Neither the model, nor the tokenizer, nor any generator of random numbers is changed; a
    second time gives the same."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    padding = tokenizer.padding_side
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    states = (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.random.get_rng_state().tolist(),
    )
    first = score(model, tokenizer, [tasks["tiny_write"], tasks["tiny_choice"]])
    assert first == score(model, tokenizer, [tasks["tiny_write"], tasks["tiny_choice"]])
    assert (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.random.get_rng_state().tolist(),
    ) == states
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert tokenizer.padding_side == padding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_split": "nowhere"}, "cannot be loaded: .*nowhere"),
        (
            {"dataset_kwargs": {"data_files": "nowhere.jsonl"}},
            "cannot be loaded: .*nowhere.jsonl.*without a network only",
        ),
        ({"doc_to_text": "!function utils.prompt"}, "cannot be loaded: "),
    ],
)
def test_refuses_files(change, message, tasks, tmp_path):
    """A task's file that cannot be loaded, or whose templates fail, is refused in one line."""
    with refused(message) as refusal:
        read(DataSpec(lm_eval=[changed(tasks["tiny_choice"], change, tmp_path)]))
    assert len(str(refusal.value).splitlines()) == 1


def test_a_task_file_runs_code_with_consent_only(tasks, tmp_path, tokenizer):
    """A file that names a function is refused without consent, where documents are read and where
    they are scored."""
    (tmp_path / "utils.py").write_text(
        "def prompt(doc):\n    return 'asked: ' + doc['question']\n", encoding="utf-8"
    )
    file = changed(tasks["tiny_choice"], {"doc_to_text": "!function utils.prompt"}, tmp_path)
    with refused("a task file may run code; read it, and pass --trust-remote-code"):
        load_examples(DataSpec(lm_eval=[file]))
    examples = read(DataSpec(lm_eval=[file]))
    assert examples[0].prompt.startswith("asked: ")
    with refused("a task file may run code"):
        LmEvalTask(LmEvalSpec()).prepare(examples, tokenizer)


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
    task = trusting(LmEvalSpec(**keys))
    with refused(message):
        task.prepare(read(DataSpec(lm_eval=[tasks["tiny_choice"]])), tokenizer)


def test_refuses_metrics_of_all_documents(tasks, tokenizer, tmp_path):
    """A metric that only many documents together have scores no example."""
    file = changed(tasks["tiny_write"], {"metric_list": [{"metric": "bleu"}]}, tmp_path)
    with refused(r"metric: bleu of tiny_write is of all documents together \(bleu\)"):
        trusting(LmEvalSpec()).prepare(read(DataSpec(lm_eval=[file])), tokenizer)


def test_refuses_other_data(tokenizer):
    """Examples that are no documents of lm_eval's, and settings of records beside them, are
    refused."""
    with refused(r"quiz.jsonl:x: is no document of lm_eval; write data: \{search: \{lm_eval: TASK"):
        LmEvalTask(LmEvalSpec()).prepare([Example("a", "b", "quiz.jsonl:x")], tokenizer)
    with refused("'lm_eval' has prompts and answers of its own; leave out 'template'"):
        validate(DataSpec, {"lm_eval": "arc_easy", "template": "{question}"}, FitnessError)


def test_says_what_to_install(monkeypatch):
    """Where lm_eval is missing, one line says how to install it."""
    load_tasks.cache_clear()
    monkeypatch.setattr("hf_evomerge.fitness.tasks.harness.find_spec", lambda name: None)
    with refused(r"lm_eval: is not installed: pip install 'hf-evomerge\[eval\]'"):
        load_examples(DataSpec(lm_eval=["arc_easy"]))
