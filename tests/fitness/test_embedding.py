"""Vectors of encoders as sentence-transformers makes them, and a search over encoders with a Dense
layer."""

import json
import re
from pathlib import Path

import pytest
import torch
from classes import edit_json
from safetensors.torch import load_file
from sentence import sentence_folder
from transformers import BertModel

from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import SourceError
from hf_evomerge.fitness import Example, make_task, parse_task
from hf_evomerge.fitness.text.embedding import attach_modules
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.stages import Step
from hf_evomerge.search.phases.baselines.finetune import Lora, fine_tune
from hf_evomerge.search.run import run_search
from hf_evomerge.search.score_model import evaluate_model

from .conftest import check_gradient, refused

EXAMPLES = [
    Example("one two three", "six", "a"),
    Example("four", "seven one", "b"),
    Example("six", "two one two one one", "c"),
]
PROMPTS = {"query": "one ", "document": "two three "}
CASES = {
    "plain": {"size": None},
    "cls": {"size": None, "pooling": "cls"},
    "last": {"size": None, "pooling": "lasttoken"},
    "max": {"size": None, "pooling": "max"},
    "two": {"pooling": ["mean", "cls"], "size": None},
    "tanh": {"prompts": PROMPTS},
    "identity": {"activation": "torch.nn.modules.linear.Identity", "pooling": "mean"},
    "norm": {"norm": True, "pooling": "cls", "activation": "torch.nn.modules.activation.GELU"},
}


def vectors(folder, tokenizer):
    """The unit vector of every text of the examples, as the task retrieval computes it."""
    source = open_source(str(folder))
    model = BertModel.from_pretrained(folder).eval()
    attach_modules(source, model)
    task = make_task(parse_task({"task": "retrieval", "batch_size": 2}))
    task.sentence = source.sentence
    task.prepare(EXAMPLES, tokenizer)
    with torch.inference_mode():
        found = task._vectors(model)
    return found


@pytest.mark.parametrize("case", CASES)
def test_vectors_are_those_of_sentence_transformers(case, tmp_path, tokenizer):
    """In padded batches, with prompts before queries and passages."""
    library = pytest.importorskip("sentence_transformers")
    folder = sentence_folder(tmp_path / "a", tokenizer, 0, **CASES[case])
    found = vectors(folder, tokenizer)
    encoder = library.SentenceTransformer(str(folder), device="cpu")
    before = CASES[case].get("prompts", {"query": "", "document": ""})
    for encode, prompt, texts in (
        (encoder.encode_query, before["query"], [one.prompt for one in EXAMPLES]),
        (encoder.encode_document, before["document"], [one.answer for one in EXAMPLES]),
    ):
        theirs = torch.tensor(encode(texts, normalize_embeddings=True))
        torch.testing.assert_close(
            torch.stack([found[prompt + text] for text in texts]), theirs, rtol=0, atol=1e-5
        )


def test_the_gradient_reaches_the_modules(tmp_path, tokenizer):
    """A Dense layer's weights have the gradient of the mean score."""
    source = open_source(str(sentence_folder(tmp_path / "a", tokenizer, 0)))
    model = BertModel.from_pretrained(source.folder).eval()
    attach_modules(source, model)
    task = make_task(parse_task({"task": "retrieval", "batch_size": 2}))
    task.sentence = source.sentence
    task.prepare(EXAMPLES, tokenizer)
    check_gradient(task, model, model.get_submodule("2_Dense").linear.weight)


def test_an_encoder_is_fine_tuned_through_its_modules(tmp_path, tokenizer):
    """LoRA raises the score of what the Dense layer gives."""
    source = open_source(str(sentence_folder(tmp_path / "a", tokenizer, 0)))
    model = BertModel.from_pretrained(source.folder).eval().requires_grad_(False)
    attach_modules(source, model)

    def make():
        task = make_task(parse_task({"task": "retrieval"}))
        task.sentence = source.sentence
        return task

    task = make()
    task.prepare(EXAMPLES, tokenizer)
    before = task.evaluate(model).mean
    assert (
        task.evaluate(
            fine_tune(model, make, EXAMPLES, tokenizer, Lora(1e-2, steps=20, batch=3))
        ).mean
        > before
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pooling": "weightedmean"},
            "1_Pooling: weightedmean is not computed by the task retrieval",
        ),
        (
            {"prompts": {"query": "one "}, "include": False},
            "1_Pooling: include_prompt: false is not computed",
        ),
        ({"kind": "SpladePooling"}, "1_Pooling: SpladePooling is not computed"),
        (
            {"input": "token_embeddings"},
            "2_Dense: Dense with a residual or of tokens is not computed",
        ),
    ],
)
def test_other_ways_to_make_vectors_are_refused(change, message, tmp_path, tokenizer):
    """One line, before a model is loaded."""
    more = {key: value for key, value in change.items() if key in ("pooling", "prompts")}
    folder = sentence_folder(tmp_path / "a", tokenizer, 0, **more)
    if "include" in change:
        edit_json(folder / "1_Pooling" / "config.json", include_prompt=False)
    if "input" in change:
        edit_json(folder / "2_Dense" / "config.json", module_input_name=change["input"])
    if "kind" in change:
        text = (folder / "modules.json").read_text()
        (folder / "modules.json").write_text(
            text.replace("models.Pooling", f"models.{change['kind']}")
        )
    task = make_task(parse_task({"task": "retrieval"}))
    task.sentence = open_source(str(folder)).sentence
    with refused(message):
        task.prepare(EXAMPLES, tokenizer)


def test_modules_that_are_something_else_are_refused(tmp_path, tokenizer):
    """Code of others, or a whole network of torch's, as an activation; no length; a kind that is
    merged but not computed."""
    large = sentence_folder(tmp_path / "large", tokenizer, 0, activation="torch.nn.Transformer")
    with pytest.raises(SourceError, match=r"2_Dense is no Dense of torch's layers: .*Transformer"):
        attach_modules(open_source(str(large)), torch.nn.Linear(1, 1))
    (large / "sentence_bert_config.json").write_text('{"max_seq_length": -1}')
    with pytest.raises(SourceError, match="max_seq_length is no whole number above 0"):
        _ = open_source(str(large)).sentence
    folder = sentence_folder(tmp_path / "a", tokenizer, 0, activation="mine.Strange")
    with pytest.raises(
        SourceError, match=r"2_Dense is no Dense of torch's layers: .*mine\.Strange"
    ):
        attach_modules(open_source(str(folder)), torch.nn.Linear(1, 1))
    (folder / "modules.json").write_text(
        (folder / "modules.json").read_text().replace("models.Dense", "models.LSTM")
    )
    with pytest.raises(SourceError, match="2_Dense is a LSTM, which is merged but not scored"):
        attach_modules(open_source(str(folder)), torch.nn.Linear(1, 1))


@pytest.fixture
def search(tmp_path, tokenizer, search_config):
    """A search by gradient over two encoders with a Dense layer, and their base."""
    for seed, name in enumerate(("base", "a", "b")):
        sentence_folder(tmp_path / name, tokenizer, seed, prompts=PROMPTS)
    for split, examples in (
        ("search", EXAMPLES),
        ("test", [Example("two", "five"), Example("seven", "one")]),
    ):
        lines = [
            json.dumps({"prompt": example.prompt, "answer": example.answer}) for example in examples
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    data = {split: {"jsonl": str(tmp_path / f"{split}.jsonl")} for split in ("search", "test")}
    steps = [{"by": "gradient", "evaluations": 9, "batch": "all"}]
    fitness = {"task": "retrieval"}
    merge = {"groups": "rows"}
    more = {"merge": merge, "data": data, "compare": {"baselines": []}}
    config = search_config("ps", tmp_path, optimize=steps, fitness=fitness, **more)
    return config


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
    assert {name: tensor.tolist() for name, tensor in live.items()} == {
        name: tensor.tolist() for name, tensor in stored.items()
    }
    assert "2_Dense/linear.weight" in result.winner.to_yaml()
    first = load_file(tmp_path / "a" / "2_Dense" / "model.safetensors")
    assert not torch.equal(stored["linear.weight"], first["linear.weight"])
    assert (built / "1_Pooling" / "config.json").exists()


def test_the_evaluator_of_the_documentation(search, tmp_path, monkeypatch):
    """The page's function scores candidates by sentence-transformers' own evaluator."""
    pytest.importorskip("sentence_transformers")
    page = Path(__file__).parents[2] / "docs" / "encoders.md"
    (block,) = (
        text
        for text in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        if "Evaluator" in text
    )
    monkeypatch.chdir(tmp_path)
    steps = (Step(evaluations=4, population=4),)
    search.model_copy(update={"optimize": steps}).save(tmp_path / "search.yaml")
    (tmp_path / "a").rename(tmp_path / "german")
    (tmp_path / "search.yaml").write_text(
        (tmp_path / "search.yaml").read_text().replace(f"{tmp_path}/a", f"{tmp_path}/german")
    )
    names = {"__name__": "__main__"}
    exec(compile(block, "docs/encoders.md", "exec"), names)
    rows = names["result"].rows
    encoder = names["SentenceTransformer"](str(tmp_path / "evaluated" / "model"), device="cpu")
    winner = next(row for row in rows if row.winner)
    assert winner.scores.mean == pytest.approx(
        names["evaluator"](encoder)["spearman_cosine"], abs=1e-6
    )
