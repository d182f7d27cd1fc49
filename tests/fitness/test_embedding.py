"""Vectors of encoders as sentence-transformers makes them, and a search over encoders with a Dense
layer."""

import re
from copy import copy
from pathlib import Path

import pytest
import torch
import yaml
from classes import edit_json
from refusals import refused
from safetensors.torch import load_file
from sentence import sentence_folder
from transformers import BertModel

from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import FitnessError, SourceError
from hf_evomerge.fitness import Example, make_task, parse_task
from hf_evomerge.fitness.text.embedding import attach_modules
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.stages import Step
from hf_evomerge.search.phases.baselines.finetune import Lora, fine_tune
from hf_evomerge.search.run import run_search
from hf_evomerge.search.score_model import evaluate_model

from .conftest import check_gradient, write_lines

EXAMPLES = [
    Example("one two three", "six", "a"),
    Example("four", "seven one", "b"),
    Example("six", "two one two one one", "c"),
]
CASES = yaml.safe_load("""
plain: {size: null}
cls: {size: null, pooling: cls}
last: {size: null, pooling: lasttoken}
max: {size: null, pooling: max}
two: {pooling: [mean, cls], size: null}
tanh: {prompts: {query: "one ", document: "two three "}}
identity: {activation: torch.nn.modules.linear.Identity, pooling: mean}
norm: {norm: true, pooling: cls, activation: torch.nn.modules.activation.GELU}
""")
PROMPTS = CASES["tanh"]["prompts"]


@pytest.fixture
def opened(tmp_path, tokenizer):
    """Makes an encoder with modules after it, and gives its source, the live model, and a task that
    is not prepared."""

    def make(**settings):
        source = open_source(str(sentence_folder(tmp_path / "a", tokenizer, 0, **settings)))
        model = BertModel.from_pretrained(source.folder).eval().requires_grad_(False)
        attach_modules(source, model)
        task = make_task(parse_task({"task": "retrieval", "batch_size": 2}))
        task.sentence = source.sentence
        return source, model, task

    return make


@pytest.mark.parametrize("case", CASES)
def test_vectors_are_those_of_sentence_transformers(case, opened, tokenizer):
    """In padded batches, with prompts before queries and passages."""
    library = pytest.importorskip("sentence_transformers")
    source, model, task = opened(**CASES[case])
    task.prepare(EXAMPLES, tokenizer)
    found = task._vectors(model)
    encoder = library.SentenceTransformer(str(source.folder), device="cpu")
    before = CASES[case].get("prompts", {"query": "", "document": ""})
    for encode, prompt, texts in (
        (encoder.encode_query, before["query"], [one.prompt for one in EXAMPLES]),
        (encoder.encode_document, before["document"], [one.answer for one in EXAMPLES]),
    ):
        theirs = torch.tensor(encode(texts, normalize_embeddings=True))
        ours = torch.stack([found[prompt + text] for text in texts])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_gradient_reaches_the_modules(opened, tokenizer):
    """A Dense layer's weights have the gradient of the mean score."""
    _, model, task = opened()
    task.prepare(EXAMPLES, tokenizer)
    weight = model.get_submodule("2_Dense").linear.weight.requires_grad_()
    check_gradient(task, model, weight)


def test_an_encoder_is_fine_tuned_through_its_modules(opened, tokenizer):
    """LoRA raises the score of what the Dense layer gives."""
    _, model, task = opened()
    task.prepare(EXAMPLES, tokenizer)
    before = task.evaluate(model).mean
    tuned = fine_tune(model, lambda: copy(task), EXAMPLES, tokenizer, Lora(1e-2, steps=20, batch=3))
    assert task.evaluate(tuned).mean > before


OTHER_INPUT = {"module_input_name": "token_embeddings"}


@pytest.mark.parametrize(
    ("settings", "module", "change", "message"),
    [
        ({"pooling": "weightedmean"}, "1_Pooling", {}, "weightedmean is not computed by the task"),
        (
            {"prompts": PROMPTS},
            "1_Pooling",
            {"include_prompt": False},
            "include_prompt: false is not",
        ),
        ({}, "1_Pooling", "SpladePooling", "SpladePooling is not computed"),
        ({}, "2_Dense", OTHER_INPUT, "Dense with a residual or of tokens is not computed"),
    ],
)
def test_other_ways_to_make_vectors_are_refused(
    settings, module, change, message, tmp_path, tokenizer
):
    """One line, before a model is loaded."""
    folder = sentence_folder(tmp_path / "a", tokenizer, 0, **settings)
    if isinstance(change, str):
        rename(folder, "Pooling", change)
    else:
        edit_json(folder / module / "config.json", **change)
    task = make_task(parse_task({"task": "retrieval"}))
    task.sentence = open_source(str(folder)).sentence
    with refused(FitnessError, f"{module}: {message}"):
        task.prepare(EXAMPLES, tokenizer)


def rename(folder, kind, other):
    """Make modules of a kind those of another."""
    file = folder / "modules.json"
    file.write_text(file.read_text().replace(f"models.{kind}", f"models.{other}"))


@pytest.mark.parametrize(
    ("activation", "kind", "message"),
    [
        ("torch.nn.Transformer", "Dense", "is no Dense of torch's layers: .*Transformer"),
        ("mine.Strange", "Dense", r"is no Dense of torch's layers: .*mine\.Strange"),
        ("mine.Strange", "LSTM", "is a LSTM, which is merged but not scored"),
    ],
)
def test_modules_that_are_something_else_are_refused(
    activation, kind, message, tmp_path, tokenizer
):
    """Code of others, or a whole network of torch's, as an activation; a kind that is merged but
    not computed."""
    folder = sentence_folder(tmp_path / "a", tokenizer, 0, activation=activation)
    rename(folder, "Dense", kind)
    with refused(SourceError, f"2_Dense {message}"):
        attach_modules(open_source(str(folder)), torch.nn.Linear(1, 1))


def test_a_length_below_1_is_refused(tmp_path, tokenizer):
    """A folder's length is a whole number above 0."""
    folder = sentence_folder(tmp_path / "a", tokenizer, 0)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": -1}')
    with refused(SourceError, "max_seq_length is no whole number above 0"):
        _ = open_source(str(folder)).sentence


@pytest.fixture
def search(tmp_path, tokenizer, search_config):
    """A search by gradient over two encoders with a Dense layer, and their base."""
    for seed, name in enumerate(("base", "a", "b")):
        sentence_folder(tmp_path / name, tokenizer, seed, prompts=PROMPTS)
    data = {}
    for split, pairs in (
        ("search", [(each.prompt, each.answer) for each in EXAMPLES]),
        ("test", [("two", "five"), ("seven", "one")]),
    ):
        records = [{"prompt": prompt, "answer": answer} for prompt, answer in pairs]
        data[split] = write_lines(tmp_path / f"{split}.jsonl", records)
    return search_config(
        "ps",
        tmp_path,
        optimize=[{"by": "gradient", "evaluations": 9, "batch": "all"}],
        fitness={"task": "retrieval"},
        merge={"groups": "rows"},
        data=data,
        compare={"baselines": []},
    )


def test_a_search_scores_what_it_builds(search, tmp_path):
    """Candidates run through their merged modules, which are the built ones bit for bit; a part of
    the search is their rows."""
    result = run_search(search, tmp_path / "out")
    winner = next(row for row in result.rows if row.winner)
    built = tmp_path / "out" / "model"
    assert evaluate_model(str(built), search).scores.mean == pytest.approx(
        winner.scores.mean, abs=1e-6
    )
    live = Evaluator(search).models.model(result.winner).get_submodule("2_Dense").state_dict()
    stored = load_file(built / "2_Dense" / "model.safetensors")
    torch.testing.assert_close(dict(live), stored, rtol=0, atol=0)
    assert "2_Dense/linear.weight" in result.winner.to_yaml()
    first = load_file(tmp_path / "a" / "2_Dense" / "model.safetensors")
    assert not torch.equal(stored["linear.weight"], first["linear.weight"])
    assert (built / "1_Pooling" / "config.json").exists()


def test_the_evaluator_of_the_documentation(search, tmp_path, monkeypatch):
    """The page's function scores candidates by sentence-transformers' own evaluator."""
    pytest.importorskip("sentence_transformers")
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (block,) = (text for text in blocks if "Evaluator" in text)
    monkeypatch.chdir(tmp_path)
    steps = (Step(evaluations=4, population=4),)
    (tmp_path / "a").rename(tmp_path / "german")
    file = tmp_path / "search.yaml"
    search.model_copy(update={"optimize": steps}).save(file)
    file.write_text(file.read_text().replace(f"{tmp_path}/a", f"{tmp_path}/german"))
    names = {"__name__": "__main__"}
    exec(compile(block, "docs/encoders.md", "exec"), names)
    encoder = names["SentenceTransformer"](str(tmp_path / "evaluated" / "model"), device="cpu")
    winner = next(row for row in names["result"].rows if row.winner)
    similarity = names["evaluator"](encoder)["spearman_cosine"]
    assert winner.scores.mean == pytest.approx(similarity, abs=1e-6)
