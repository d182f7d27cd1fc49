"""The fitness of classifiers, of texts and of pictures, and a search that climbs it."""

import dataclasses
import json
import math

import pytest
import torch
from classes import CLASSES, edit_json, random_class
from PIL import Image
from transformers import (
    BertConfig,
    BertForPreTraining,
    ViTForImageClassification,
    ViTImageProcessor,
)
from vlms import WORDS
from vlms import tokenizer as words

from hf_evomerge.building.build import build_model
from hf_evomerge.fitness import DataSpec, Example, load_examples
from hf_evomerge.fitness.pictures import SeeingTokenizer
from hf_evomerge.fitness.registry import DifferentiableTask
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.search.run import run_search
from hf_evomerge.search.score_model import evaluate_model

from .conftest import check_gradient, prepared, refused

STEP = {"by": "gradient", "evaluations": 9}


def test_texts_are_scored_by_the_right_labels_log_probability(tokenizer):
    """In padded batches as one by one; labels by name or number; right where the label is the most
    probable."""
    model = random_class("bert", 0)
    examples = [
        Example("one two three", "red", "a"),
        Example("four", "2", "b"),
        Example("five six", "green", "c"),
    ]
    task = prepared("classification", examples, tokenizer, batch_size=2)
    scores = task.evaluate(model)
    for example, label, value, right in zip(
        examples, (0, 2, 1), scores.values, list(scores.correct), strict=True
    ):
        with torch.inference_mode():
            logits = (
                model(**tokenizer(example.prompt, return_tensors="pt")).logits[0].log_softmax(0)
            )
        assert value == pytest.approx(float(logits[label]), abs=1e-5)
        assert right == (int(logits.argmax()) == label)
    assert isinstance(task, DifferentiableTask)
    accuracy = prepared("classification", examples, tokenizer, score="accuracy")
    assert list(accuracy.evaluate(model).values) == [float(right) for right in list(scores.correct)]
    with refused("accuracy has no gradient"):
        accuracy.backward(model)


def test_labels_of_one_name_are_one_class(tokenizer):
    """Their probabilities are summed, and the most probable class counts, not the most probable
    label."""
    model = random_class(
        "bert", 0, id2label={0: "warm", 1: "cold", 2: "warm"}, label2id={"warm": 2, "cold": 1}
    )
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.3, 0.4, 0.3]).log())
    examples = [
        Example("one", "warm", "a"),
        Example("two", "cold", "b"),
        Example("three", "0", "c"),
    ]
    scores = prepared("classification", examples, tokenizer).evaluate(model)
    assert scores.values.tolist() == pytest.approx(
        [math.log(0.6), math.log(0.4), math.log(0.6)], abs=1e-6
    )
    assert list(scores.correct) == [True, False, True]
    assert list(scores.outputs) == ["warm"] * 3


def test_a_cross_encoder_gives_the_odds_of_one_label(tokenizer):
    """Two texts are a pair; one logit is that of 1 against 0, and another answer is no label."""
    model = random_class("bert", 0, id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0})
    examples = [
        Example("one two|three", "1", "a"),
        Example("four|five|six", "0", "b"),
        Example("six|four", "1", "c"),
    ]
    scores = prepared(
        "classification", examples, tokenizer, pair_separator="|", batch_size=2
    ).evaluate(model)
    for example, value, right in zip(examples, scores.values, list(scores.correct), strict=True):
        with torch.inference_mode():
            logit = model(**tokenizer(*example.prompt.split("|", 1), return_tensors="pt")).logits[
                0, 0
            ]
        sign = 1 if example.answer == "1" else -1
        assert value == pytest.approx(float((sign * logit).sigmoid().log()), abs=1e-5)
        assert right == (sign * logit > 0)
    with refused(r"d: no '\|' in the prompt"):
        prepared("classification", [Example("one", "1", "d")], tokenizer, pair_separator="|")
    with refused(r"e: the model has no label '1\.7'; it has 0, 1"):
        prepared("classification", [Example("one", "1.7", "e")], tokenizer).evaluate(model)
    both = [Example("one", answer, answer) for answer in ("0", "1", "0.7")]
    no, yes, graded = prepared("classification", both, tokenizer).evaluate(model).values
    assert graded == pytest.approx(0.3 * no + 0.7 * yes)  # as a binary cross-entropy is


def test_the_gradient_is_that_of_the_mean_score(tokenizer):
    """Along one direction of the head it is the slope of the mean."""
    model = random_class("bert", 0)
    examples = [
        Example("one two", "red", "a"),
        Example("four", "blue", "b"),
        Example("five", "blue", "c"),
    ]
    check_gradient(
        prepared("classification", examples, tokenizer, batch_size=2),
        model,
        model.classifier.weight,
    )


def test_labels_and_heads_that_are_not_there_are_refused(tokenizer, model):
    """An answer that is no label, and a model that gives no logits of labels."""
    task = prepared("classification", [Example("one", "yellow", "a")], tokenizer)
    with refused("a: the model has no label 'yellow'; it has red, green, blue"):
        task.evaluate(random_class("bert", 0))
    task.prepare([Example("one", "0", "a")], tokenizer)
    with refused("a LlamaForCausalLM gives no logits of 2 labels"):
        task.evaluate(model)


@pytest.fixture
def two_heads(tmp_path):
    """Two vision transformers with other labels each, their base without a head, and pictures for
    both."""
    for seed, (name, labels) in enumerate(
        {"a": ["red", "green", "blue"], "b": ["dark", "light"], "base": []}.items()
    ):
        named = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
        model = random_class("vit", seed, **(named if labels else {}))
        (model if labels else model.vit).save_pretrained(tmp_path / name)
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / name)
    lines = []
    for number, (head, label) in enumerate(
        [("color", "red"), ("light", "dark"), ("color", "blue"), ("light", "light")] * 2
    ):
        Image.new("RGB", (8, 8), (40 * number, 20, 10)).save(tmp_path / f"{number}.png")
        lines.append(
            {
                "prompt": f"picture {number}",
                "answer": label,
                "picture": f"{number}.png",
                "task": head,
            }
        )
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


@pytest.fixture
def headed(tmp_path, search_config):
    """A search over the bodies, scored through both heads."""
    data = {"jsonl": str(tmp_path / "data.jsonl"), "image_field": "picture", "head_field": "task"}
    settings = {
        "sources": [{"model": str(tmp_path / name), "component": "vision"} for name in "ab"],
        "merge": {"groups": "block"},
        "optimize": [STEP],
        "fitness": {"task": "classification", "heads": ["color", "light"]},
        "data": {"search": {**data, "count": 4}, "test": {**data, "start": 4}},
    }
    return lambda **changes: search_config("ps", tmp_path, **{**settings, **changes})


def test_bodies_are_merged_and_scored_through_a_head_each(two_heads, headed):
    """Every example has its own head, on the one body; the model of each head is built by naming
    its source first."""
    run_search(headed(), two_heads / "out", build=False)
    rows = json.loads((two_heads / "out" / "results.json").read_text())["rows"]
    winner = next(row for row in rows if row["winner"])
    recipe = Recipe.load(two_heads / "out" / "recipe.yaml")
    data = DataSpec(
        jsonl=str(two_heads / "data.jsonl"), image_field="picture", head_field="task", start=4
    )
    total = 0.0
    for number, head in enumerate(("color", "light")):
        order = [number, 1 - number]
        changes = {"sources": order, "parameters": [recipe.merge.parameters[i] for i in order]}
        built = recipe.model_copy(update={"merge": recipe.merge.model_copy(update=changes)})
        model = ViTForImageClassification.from_pretrained(build_model(built, two_heads / head))
        assert model.config.id2label[1] == ("green", "light")[number]
        own = [
            dataclasses.replace(example, head="")
            for example in load_examples(data)
            if example.head == head
        ]
        task = prepared(
            "classification",
            own,
            SeeingTokenizer(ViTImageProcessor.from_pretrained(two_heads / "a")),
        )
        total += float(task.evaluate(model).values.sum())
    assert total / 4 == pytest.approx(winner["fitness"], abs=1e-5)
    whole = evaluate_model(
        str(build_model(recipe, two_heads / "whole")), headed()
    )  # has one head, needs two
    assert whole.scores.values.mean() == pytest.approx(winner["fitness"], abs=1e-5)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([], "is for the head 'color'; there are none: write heads in the fitness"),
        (["color", "shade"], "is for the head 'light'; there are color, shade"),
        (["light", "color"], "the model has no label 'red'; it has dark, light"),
        (
            ["color", "light", "more"],
            "fitness.heads: color, light, more; give each of the 2 sources one name",
        ),
    ],
)
def test_heads_that_do_not_fit_are_refused_before_a_search(two_heads, headed, heads, message):
    """No head, another name, another head's labels, more names than sources: nothing is written."""
    with refused(message):
        run_search(headed(fitness={"task": "classification", "heads": heads}), two_heads / "out")
    assert not (two_heads / "out").exists()


def test_a_base_of_another_class_is_scored_through_the_heads(tmp_path, headed):
    """bert-base-uncased is a masked language model whose file has a pooler and whose class has
    none: the heads bring theirs."""
    for seed, (name, labels) in enumerate(
        {"a": ["red", "blue"], "b": ["dark", "light", "grey"]}.items()
    ):
        random_class("bert", seed, id2label=dict(enumerate(labels)), label2id={}).save_pretrained(
            tmp_path / name
        )
        words(vocabulary=WORDS[:32]).save_pretrained(tmp_path / name)
    BertForPreTraining(BertConfig(**CLASSES["bert"][1])).save_pretrained(tmp_path / "base")
    words(vocabulary=WORDS[:32]).save_pretrained(tmp_path / "base")
    edit_json(tmp_path / "base" / "config.json", architectures=["BertForMaskedLM"])
    lines = [
        {"prompt": f"w{n}", "answer": ["red", "dark"][n % 2], "task": ["color", "light"][n % 2]}
        for n in range(8)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = {"jsonl": str(tmp_path / "data.jsonl"), "head_field": "task"}
    sources = [{"model": str(tmp_path / name), "component": "text"} for name in "ab"]
    splits = {"search": {**data, "count": 4}, "test": {**data, "start": 4}}
    run_search(headed(sources=sources, data=splits), tmp_path / "out", build=False)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert len({row["fitness"] for row in rows if row["fitness"] is not None}) == len(rows)
