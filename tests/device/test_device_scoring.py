"""Tasks score models on another device as on the processor: parents, merges and paths."""

import numpy as np
import pytest
import torch
import yaml
from classes import random_class
from sentence import sentence_folder
from transformers import AutoTokenizer, BertModel
from words import word_tokenizer

from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.fitness import Example, make_task, parse_task
from hf_evomerge.fitness.text.embedding import attach_modules
from hf_evomerge.recipes.recipe import SourceRef
from hf_evomerge.search.evaluation.evaluator import Evaluator

TASKS = yaml.safe_load("""
- {task: likelihood, separator: " "}
- {task: generation, extract: all, max_new_tokens: 6, stop: [w1]}
- {task: multiple_choice}
- {task: perplexity}
- {task: agreement, source: base, separator: " "}
""")
PARTS = """
- merge: {method: ties, parameters: [{weight: 0.7, density: 0.5}, {weight: 0.4}]}
- flow: {path: ["0:0", "1:1*0.6 + 0:1*0.5", "0:0", "1:1"], scales: [1.0, 0.8, 1.2, 1.0]}
"""
EXAMPLES = [
    Example(f"w{number} w3 4", f"w{number}", str(number), choices=("w0", "w1", "w2"))
    for number in range(3)
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task["task"])
def test_a_task_there(task, device, search_there):
    """A parent, a merge and a path with hops of several terms have the processor's scores."""
    scores = []
    for place in ("cpu", device):
        config = search_there(place, space="hybrid", fitness=task)
        evaluator = Evaluator(config, examples={"search": EXAMPLES})
        targets = [config.sources[0]]
        targets += [config.recipe(**part) for part in yaml.safe_load(PARTS)]
        found = [evaluator.evaluate(target) for target in targets]
        assert [each.error for each in found] == [None] * 3
        assert evaluator.models.model(targets[-1]).device == torch.device(place)
        scores.append([*found, evaluator.answer(targets[-1], EXAMPLES[0], 5)])
    assert scores[0] == scores[1]


@pytest.mark.parametrize("fitness", ["classification", "retrieval"])
def test_encoders_there(fitness, device, search_there, tiny, tmp_path):
    """Classifiers and encoders of sentences are scored, with a gradient and without."""
    random_class("bert", 0).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny / "a").save_pretrained(tmp_path / "model")
    ref = SourceRef(model=str(tmp_path / "model"))
    examples = [Example(f"w{color} w5", color, color) for color in ("red", "green", "blue")]
    settings = {"sources": [ref, ref], "base": None, "merge": {"method": "linear"}}
    values = []
    for place in ("cpu", device):
        config = search_there(place, fitness={"task": fitness}, **settings)
        evaluator = Evaluator(config, examples={"search": examples})
        values.append(evaluator.evaluate(ref).values)
        model = evaluator.models.model(ref).requires_grad_(True)
        task = evaluator.tasks.prepared(ref)
        assert np.array_equal(task.backward(model).values, values[-1])
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        assert {gradient.device for gradient in gradients} == {torch.device(place)}
    assert len(values[1]) == 3
    assert np.array_equal(*values)


def test_modules_follow_an_encoder_there(device, tmp_path):
    """The layers after an encoder go to its device, where a quantised one is before they are
    read."""
    tokenizer = word_tokenizer(
        ["<pad>", "<bos>", "<eos>", "<unk>", "one", "two", "three", *map(str, range(9))]
    )
    source = open_source(sentence_folder(tmp_path / "a", tokenizer, 0, norm=True))
    values = []
    for place in ("cpu", device):
        model = (
            BertModel.from_pretrained(source.folder, attn_implementation="eager").eval().to(place)
        )
        attach_modules(source, model)
        task = make_task(parse_task({"task": "retrieval", "batch_size": 2}))
        task.sentence = source.sentence
        task.prepare(
            [Example(f"one {number}", f"two {number}", str(number)) for number in range(3)],
            tokenizer,
        )
        values.append(task.evaluate(model).values)
    assert np.array_equal(*values)
