import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import DataSpec, Example, load_examples
from hf_evomerge.fitness.tasks.harness import load_tasks
from hf_evomerge.recipes.strict_yaml import validate

from .conftest import WORDS, prepared, refused, write_lines

KINDS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: "{{answer}}"
fewshot_split: train
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "tiny_write": r"""
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[answer]}}"
generation_kwargs: {until: ["18"], max_gen_toks: 6, do_sample: false}
filter_list:
  - name: first
    filter: [{function: regex, regex_pattern: (\S+)}, {function: take_first}]
  - {name: whole, filter: [{function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "tiny_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Three tasks of different kinds, as files beside their documents."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    records = []
    for _ in range(12):
        options = rng.sample(WORDS[:8], 3)
        question = " ".join(rng.choices(WORDS, k=rng.randint(2, 9)))
        records.append({"question": question, "options": options, "answer": rng.randrange(3)})
    write_lines(folder / "train.jsonl", records[:4])
    write_lines(folder / "test.jsonl", records[4:])
    files = f"{{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}"
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {files}}}\ntest_split: test\n"
    made = {}
    for name, kind in KINDS.items():
        file = folder / f"{name}.yaml"
        file.write_text(f"task: {name}\n{data}{kind}", encoding="utf-8")
        made[name] = str(file)
    return made


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
        # asks pip and git for seconds
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        return lm_eval.simple_evaluate(
            "hf",
            arguments,
            [*tasks.values()],
            num_fewshot=2,
            device="cpu",
            bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False),
        )


TRUSTED = {"trust_remote_code": True}


def read(*names, **cut):
    """The documents of tasks, with consent to load their files."""
    return load_examples(DataSpec(lm_eval=names, **cut), **TRUSTED)


def score(model, tokenizer, names, **keys):
    """What a model scores on documents of tasks."""
    task = prepared("lm_eval", read(*names), tokenizer, TRUSTED, num_fewshot=2, **keys)
    return task.evaluate(model)


def changed(task, folder, change):
    """The file of a task with other keys, of which the last counts."""
    text = Path(task).read_text(encoding="utf-8")
    (folder / "task.yaml").write_text(text + change, encoding="utf-8")
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
    names = (tasks["tiny_choice"], tasks["tiny_rolling"])
    cuts = ({"shuffle_seed": 5, "count": 6}, {"shuffle_seed": 5, "start": 6}, {})
    values = []
    for cut in cuts:
        part = read(*names, **cut)
        metric = {"tiny_choice": "acc_norm"}
        task = prepared("lm_eval", part, tokenizer, TRUSTED, metric=metric)
        scores = task.evaluate(model).values
        values.append({each.id: value for each, value in zip(part, scores, strict=True)})
    first, rest, whole = values
    assert not first.keys() & rest
    assert first | rest == pytest.approx(whole, abs=1e-6)
    assert len(whole) == 16


def test_leaves_everything_as_it_was(tasks, model, tokenizer):
    """Neither the model, nor the tokenizer, nor any generator of random numbers is changed; a
    second time gives the same."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [tasks["tiny_write"], tasks["tiny_choice"]]

    def state():
        arrays = (np.random.get_state()[1], torch.random.get_rng_state())
        return random.getstate(), tokenizer.padding_side, *(each.tolist() for each in arrays)

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    seeded = state()
    assert score(model, tokenizer, names) == score(model, tokenizer, names)
    assert state() == seeded
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("test_split: nowhere", "cannot be loaded: .*nowhere"),
        (
            "dataset_kwargs: {data_files: nowhere.jsonl}",
            "cannot be loaded: .*nowhere.jsonl.*without a network only",
        ),
        ("doc_to_text: !function utils.prompt", "cannot be loaded: "),
    ],
)
def test_refuses_files(change, message, tasks, tmp_path):
    """A task's file that cannot be loaded, or whose templates fail, is refused."""
    with refused(message):
        read(changed(tasks["tiny_choice"], tmp_path, change))


def test_a_task_file_runs_code_with_consent_only(tasks, tmp_path, tokenizer):
    """A file that names a function is refused without consent, where documents are read and where
    they are scored."""
    code = "def prompt(doc):\n    return 'asked: ' + doc['question']\n"
    (tmp_path / "utils.py").write_text(code, encoding="utf-8")
    file = changed(tasks["tiny_choice"], tmp_path, "doc_to_text: !function utils.prompt")
    consent = "a task file may run code; read it, and pass --trust-remote-code"
    with refused(consent):
        load_examples(DataSpec(lm_eval=[file]))
    examples = read(file)
    assert examples[0].prompt.startswith("asked: ")
    with refused(consent):
        prepared("lm_eval", examples, tokenizer)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("metric: acc_nrom", "metric: tiny_choice has no 'acc_nrom'; did you mean acc_norm"),
        ("metric: {tiny: acc}", "metric: 'tiny' is no task here"),
        ("chat: true", "the tokenizer has no chat template; leave out chat"),
        ("{}", r"metric: bleu of tiny_choice is of all documents together \(bleu\)"),
    ],
)
def test_refuses_settings(keys, message, tasks, tokenizer, tmp_path):
    """Metrics, tasks and templates that there are not, and a metric that only many documents
    together have, are named before any model is scored."""
    bleu = "metric_list: [{metric: bleu}]\noutput_type: generate_until"
    file = changed(tasks["tiny_choice"], tmp_path, bleu if keys == "{}" else "")
    with refused(message):
        prepared("lm_eval", read(file), tokenizer, TRUSTED, **yaml.safe_load(keys))


def test_refuses_other_data(tokenizer):
    """Examples that are no documents of lm_eval's, and settings of records beside them, are
    refused."""
    with refused(r"quiz.jsonl:x: is no document of lm_eval; write data: \{search: \{lm_eval: TASK"):
        prepared("lm_eval", [Example("a", "b", "quiz.jsonl:x")], tokenizer)
    with refused("'lm_eval' has prompts and answers of its own; leave out 'template'"):
        validate(DataSpec, {"lm_eval": "arc_easy", "template": "{question}"}, FitnessError)


def test_says_what_to_install(monkeypatch):
    """Where lm_eval is missing, one line says how to install it."""
    load_tasks.cache_clear()
    monkeypatch.setattr("hf_evomerge.fitness.tasks.harness.find_spec", lambda name: None)
    with refused(r"lm_eval: is not installed: pip install 'hf-evomerge\[eval\]'"):
        load_examples(DataSpec(lm_eval=["arc_easy"]))
