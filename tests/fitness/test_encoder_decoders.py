"""Encoder-decoders: what they write is scored, and a search over it ends in a model that writes the
same."""

import pytest
import torch
from classes import random_class
from slowly import slow_beyond
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.fitness import Example, load_examples
from hf_evomerge.fitness.example import Picture
from hf_evomerge.recipes.recipe import MergePart, SourceRef
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.run import run_search

from .conftest import prepared, refused, write_lines

PROMPTS = ["one", "two three four five", "six", "four four"]
WRITES = {
    "task": "generation",
    "extract": "all",
    "compare": "text",
    "max_new_tokens": 6,
    "batch_size": 3,
}


@pytest.fixture(scope="module")
def ending_tokenizer():
    """One token per word, and the end-of-text token after each text, as T5's and BART's have it."""
    vocabulary = {
        word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(22))])
    }
    vocabulary |= {
        word: 25 + i
        for i, word in enumerate(["one", "two", "three", "four", "five", "six", "seven"])
    }
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def random_writer(name, seed):
    """A tiny encoder-decoder that writes something else after every prompt."""
    own = {
        "t5": {"decoder_start_token_id": 0, "eos_token_id": 2},
        "bart": {"decoder_start_token_id": 2},
    }
    model = random_class(name, seed, **own[name])
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" not in key:
                parameter.mul_(4)
    return model


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_what_is_written_is_what_the_model_generates(name, ending_tokenizer):
    """In padded batches as one by one, from the prompt with the tokenizer's end of text."""
    model = random_writer(name, 0)
    examples = [Example(prompt, "w1", prompt) for prompt in PROMPTS]
    outputs, truncated = prepared(examples=examples, tokenizer=ending_tokenizer, **WRITES).write(
        model
    )
    assert len(set(outputs)) > 1
    for prompt, output, cut in zip(PROMPTS, outputs, truncated, strict=True):
        inputs = ending_tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        assert inputs["input_ids"][0, -1] == 2
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=1)
        assert output == ending_tokenizer.decode(ids[0, 1:], skip_special_tokens=True)
        # BART is made to end at the limit
        ended = 2 in ids[0, 1 : (6 if name == "bart" else 7)].tolist()
        assert cut == (not ended)


def test_pictures_and_long_prompts_are_refused(ending_tokenizer):
    """An encoder of texts sees none, and has so many positions."""
    model = random_writer("bart", 0)
    long = r"^a: the longest prompt with fitness.max_new_tokens, \d+ .*, takes 21 tokens; the model"
    for example, message in (
        (Example("one", "w1", "a", pictures=(Picture(b"", "here"),)), "an encoder of texts"),
        (Example("one " * 20, "w1", "a"), long),
    ):
        task = prepared(examples=[Example("one", "w1")], tokenizer=ending_tokenizer, **WRITES)
        task._examples = [example]
        with refused(message):
            task.write(model)


def search_of(search_config, folder, name, tokenizer, **changes):
    """A search for the merge that writes what the merge with weights .9 and .4 writes."""
    for seed, called in enumerate(("base", "a", "b")):
        random_writer(name, seed).save_pretrained(folder / called)
        tokenizer.save_pretrained(folder / called)
    data = {split: {"jsonl": str(folder / f"{split}.jsonl")} for split in ("search", "test")}
    settings = {
        "optimize": [{"evaluations": 8, "batch": "all"}],
        "fitness": WRITES,
        "data": data,
        "compare": {"baselines": []},
        **changes,
    }
    config = search_config("ps", folder, **settings)
    weights = [{"weight": 0.9}, {"weight": 0.4}]
    aim = config.recipe(merge=MergePart(method="task_arithmetic", parameters=weights))
    splits = {"search": PROMPTS[:3], "test": PROMPTS[3:]}
    examples = {split: [Example(each, "w1", each) for each in splits[split]] for split in splits}
    evaluator = Evaluator(config, examples=examples)
    for split, asked in splits.items():
        answers = asked if changes else evaluator.evaluate(aim, split).outputs
        pairs = zip(asked, answers, strict=True)
        records = [{"prompt": each, "answer": answer or "w1"} for each, answer in pairs]
        write_lines(folder / f"{split}.jsonl", records)
    return config


@pytest.mark.parametrize("name", slow_beyond(["bart"], ["t5", "bart"]))
def test_a_search_on_generated_answers(name, ending_tokenizer, tmp_path, search_config):
    """The winner is built as a plain model, which writes what its trial wrote; an answer can be
    shown."""
    config = search_of(search_config, tmp_path, name, ending_tokenizer)
    result = run_search(config, tmp_path / "out")
    winner = next(row for row in result.rows if row.winner)
    built = tmp_path / "out" / "model"
    examples = load_examples(config.data["test"])
    task = prepared(examples=examples, tokenizer=AutoTokenizer.from_pretrained(built), **WRITES)
    scores = task.evaluate(AutoModelForSeq2SeqLM.from_pretrained(built))
    assert scores.mean == pytest.approx(winner.scores.mean)
    shown = Evaluator(config).answer(SourceRef(model=str(built)), examples[0], 6)
    assert shown == scores.outputs[0].strip()


def test_a_likelihood_of_decoders_alone_is_refused(ending_tokenizer, tmp_path, search_config):
    """BART's config is also that of a decoder alone, which such a model is not: one line, and
    nothing is written."""
    likelihood = {"task": "likelihood"}
    config = search_of(search_config, tmp_path, "bart", ending_tokenizer, fitness=likelihood)
    message = "BartForConditionalGeneration .* is no model that the task likelihood scores"
    with pytest.raises(EvoMergeError, match=message):
        run_search(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
