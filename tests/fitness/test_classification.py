"""The fitness of classifiers, of texts and of pictures, and a search that climbs it."""

import dataclasses

import numpy as np
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
from hf_evomerge.fitness import Example, load_examples
from hf_evomerge.fitness.pictures import SeeingTokenizer
from hf_evomerge.fitness.registry import DifferentiableTask
from hf_evomerge.search.run import run_search
from hf_evomerge.search.score_model import evaluate_model

from .conftest import check_gradient, prepared, refused, write_lines


def examples_of(*pairs):
    """Texts with their answers, called a, b, c."""
    return [Example(*pair, name) for pair, name in zip(pairs, "abc", strict=False)]


COLORS = examples_of(("one two three", "red"), ("four", "2"), ("five six", "green"))


def score(model, tokenizer, *pairs, **settings):
    """Scores of texts."""
    examples = examples_of(*pairs)
    return prepared("classification", examples, tokenizer, **settings).evaluate(model)


def test_texts_are_scored_by_the_right_labels_log_probability(tokenizer):
    """In padded batches as one by one; labels by name or number; right where the label is the most
    probable."""
    model = random_class("bert", 0)
    task = prepared("classification", COLORS, tokenizer, batch_size=2)
    scores = task.evaluate(model)
    columns = zip(COLORS, (0, 2, 1), scores.values, scores.correct, strict=True)
    for example, label, value, right in columns:
        with torch.inference_mode():
            logits = model(**tokenizer(example.prompt, return_tensors="pt")).logits[0]
        assert value == pytest.approx(float(logits.log_softmax(0)[label]), abs=1e-5)
        assert right == (int(logits.argmax()) == label)
    assert isinstance(task, DifferentiableTask)
    accuracy = prepared("classification", COLORS, tokenizer, score="accuracy")
    assert accuracy.evaluate(model).values.tolist() == scores.correct.tolist()
    with refused("accuracy has no gradient"):
        accuracy.backward(model)


def test_labels_of_one_name_are_one_class(tokenizer):
    """Their probabilities are summed, and the most probable class counts, not the most probable
    label."""
    names = {0: "warm", 1: "cold", 2: "warm"}
    model = random_class("bert", 0, id2label=names, label2id={"warm": 2, "cold": 1})
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.3, 0.4, 0.3]).log())
    scores = score(model, tokenizer, ("one", "warm"), ("two", "cold"), ("three", "0"))
    assert np.exp(scores.values).tolist() == pytest.approx([0.6, 0.4, 0.6], abs=1e-6)
    assert scores.correct.tolist() == [True, False, True]
    assert list(scores.outputs) == ["warm"] * 3


def test_a_cross_encoder_gives_the_odds_of_one_label(tokenizer):
    """Two texts are a pair; one logit is that of 1 against 0, and another answer is no label."""
    model = random_class("bert", 0, id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0})
    pairs = [("one two|three", "1"), ("four|five|six", "0"), ("six|four", "1")]
    scores = score(model, tokenizer, *pairs, pair_separator="|", batch_size=2)
    for (texts, answer), value, right in zip(pairs, scores.values, scores.correct, strict=True):
        with torch.inference_mode():
            inputs = tokenizer(*texts.split("|", 1), return_tensors="pt")
            odds = model(**inputs).logits[0, 0] * (1 if answer == "1" else -1)
        assert value == pytest.approx(float(odds.sigmoid().log()), abs=1e-5)
        assert right == (odds > 0)
    with refused(r"a: no '\|' in the prompt"):
        score(model, tokenizer, ("one", "1"), pair_separator="|")
    with refused(r"a: the model has no label '1\.7'; it has 0, 1"):
        score(model, tokenizer, ("one", "1.7"))
    no, yes, graded = score(model, tokenizer, ("one", "0"), ("one", "1"), ("one", "0.7")).values
    assert graded == pytest.approx(0.3 * no + 0.7 * yes)  # as a binary cross-entropy is


def test_the_gradient_is_that_of_the_mean_score(tokenizer):
    """Along one direction of the head it is the slope of the mean."""
    model = random_class("bert", 0)
    task = prepared("classification", COLORS, tokenizer, batch_size=2)
    check_gradient(task, model, model.classifier.weight)


def test_labels_and_heads_that_are_not_there_are_refused(tokenizer, model):
    """An answer that is no label, and a model that gives no logits of labels."""
    with refused("a: the model has no label 'yellow'; it has red, green, blue"):
        score(random_class("bert", 0), tokenizer, ("one", "yellow"))
    with refused("a LlamaForCausalLM gives no logits of 2 labels"):
        score(model, tokenizer, ("one", "0"))


def labelled(kind, seed, labels):
    """A classifier of these labels."""
    names = dict(enumerate(labels))
    return random_class(kind, seed, id2label=names, label2id={name: i for i, name in names.items()})


def write_data(folder, *answers):
    """Eight records, each for a head and with a picture."""
    records = []
    for number in range(8):
        head, label = answers[number % len(answers)]
        name = f"{number}.png"
        Image.new("RGB", (8, 8), (40 * number, 20, 10)).save(folder / name)
        records.append({"prompt": f"w{number}", "answer": label, "picture": name, "task": head})
    write_lines(folder / "data.jsonl", records)


@pytest.fixture
def two_heads(tmp_path):
    """Two vision transformers with other labels each, their base without a head, and pictures for
    both."""
    labelled("vit", 0, ["red", "green", "blue"]).save_pretrained(tmp_path / "a")
    labelled("vit", 1, ["dark", "light"]).save_pretrained(tmp_path / "b")
    random_class("vit", 2).vit.save_pretrained(tmp_path / "base")
    for name in ("a", "b", "base"):
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / name)
    answers = (("color", "red"), ("light", "dark"), ("color", "blue"), ("light", "light"))
    write_data(tmp_path, *answers)
    return tmp_path


@pytest.fixture
def headed(tmp_path, search_config):
    """A search over the bodies, scored through both heads."""
    data = {"jsonl": str(tmp_path / "data.jsonl"), "head_field": "task"}

    def config(component="vision", heads=("color", "light"), **fields):
        return search_config(
            "ps",
            tmp_path,
            sources=[{"model": str(tmp_path / name), "component": component} for name in "ab"],
            merge={"groups": "block"},
            optimize=[{"by": "gradient", "evaluations": 9}],
            fitness={"task": "classification", "heads": list(heads)},
            data={"search": {**data, **fields, "count": 4}, "test": {**data, **fields, "start": 4}},
        )

    return config


PICTURES = {"image_field": "picture"}


def test_bodies_are_merged_and_scored_through_a_head_each(two_heads, headed):
    """Every example has its own head, on the one body; the model of each head is built by naming
    its source first."""
    config = headed(**PICTURES)
    result = run_search(config, two_heads / "out", build=False)
    winner = next(row for row in result.rows if row.winner).scores.mean
    recipe = result.winner
    examples = load_examples(config.data["test"])
    sees = SeeingTokenizer(ViTImageProcessor.from_pretrained(two_heads / "a"))
    total = 0.0
    for number, head in enumerate(("color", "light")):
        order = [number, 1 - number]
        changes = {"sources": order, "parameters": [recipe.merge.parameters[i] for i in order]}
        built = recipe.model_copy(update={"merge": recipe.merge.model_copy(update=changes)})
        model = ViTForImageClassification.from_pretrained(build_model(built, two_heads / head))
        assert model.config.id2label[1] == ("green", "light")[number]
        own = [dataclasses.replace(each, head="") for each in examples if each.head == head]
        total += prepared("classification", own, sees).evaluate(model).values.sum()
    assert total / 4 == pytest.approx(winner, abs=1e-5)
    whole = build_model(recipe, two_heads / "whole")  # has one head, needs two
    assert evaluate_model(str(whole), config).scores.mean == pytest.approx(winner, abs=1e-5)


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
        run_search(headed(heads=heads, **PICTURES), two_heads / "out")
    assert not (two_heads / "out").exists()


def test_a_base_of_another_class_is_scored_through_the_heads(tmp_path, headed):
    """bert-base-uncased is a masked language model whose file has a pooler and whose class has
    none: the heads bring theirs."""
    labelled("bert", 0, ["red", "blue"]).save_pretrained(tmp_path / "a")
    labelled("bert", 1, ["dark", "light", "grey"]).save_pretrained(tmp_path / "b")
    BertForPreTraining(BertConfig(**CLASSES["bert"][1])).save_pretrained(tmp_path / "base")
    edit_json(tmp_path / "base" / "config.json", architectures=["BertForMaskedLM"])
    for name in ("a", "b", "base"):
        words(vocabulary=WORDS[:32]).save_pretrained(tmp_path / name)
    write_data(tmp_path, ("color", "red"), ("light", "dark"))
    result = run_search(headed(component="text"), tmp_path / "out", build=False)
    means = [row.scores.mean for row in result.rows]
    assert len({mean for mean in means if mean is not None}) == len(means)
