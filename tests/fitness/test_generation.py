import copy
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import GenerationConfig

from hf_evomerge.fitness import Example, Scores
from hf_evomerge.fitness.data.shots import with_shots
from hf_evomerge.fitness.tasks import writing
from hf_evomerge.fitness.text import encoding
from hf_evomerge.fitness.text.respond import Written

from .conftest import as_text, counted, prepared, refused

LENGTH = 8


def run(model, examples, tokenizer, **keys):
    """Scores on whole responses of a few tokens, unless asked otherwise."""
    keys = {"extract": "all", "max_new_tokens": LENGTH, **keys}
    return prepared("generation", examples, tokenizer, **keys).evaluate(model)


def greedy(model, prompt, tokenizer):
    """What one prompt is continued with, by forward passes without a cache."""
    tokens = tokenizer(prompt)["input_ids"]
    start = len(tokens)
    for _ in range(LENGTH):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[start:], skip_special_tokens=True)


def test_batches_equal_one_by_one(model, examples, tokenizer):
    """Left-padded batches write exactly what each prompt is continued with on its own, in the
    examples' order."""
    alone = [greedy(model, example.prompt, tokenizer) for example in examples]
    assert len(set(alone)) > 10
    assert len({len(text.split()) for text in alone}) > 2
    for batch_size in (1, 5, 64):
        assert run(model, examples, tokenizer, batch_size=batch_size).outputs == alone


def test_shots_are_read_once_for_all_responses(model, examples, tokenizer):
    """Prompts of different length after the same shots get the responses of the prompts with the
    shots as text."""
    asked = with_shots(examples, examples[:3], 2, end="<eos>")
    runs = []
    for given in (asked, as_text(asked, tokenizer)):
        with counted(model) as count:
            runs.append((run(model, given, tokenizer, batch_size=5), count[0]))
    (first, fewer), (whole, all_of_them) = runs
    assert first == whole
    assert len(set(first.outputs)) > len(asked) / 2
    assert fewer < 0.6 * all_of_them


def test_stop_strings(model, examples, tokenizer):
    """A response ends before its first stop string, and is otherwise what it is without one."""
    free = run(model, examples, tokenizer).outputs or []
    stopped = run(model, examples, tokenizer, stop=["six", "答え"]).outputs
    assert stopped == [text.split("six")[0].split("答え")[0] for text in free]
    assert stopped != free


@pytest.mark.parametrize(
    "wish",
    [
        "{do_sample: true, temperature: 9.0, repetition_penalty: 3.0, "
        "no_repeat_ngram_size: 1, num_beams: 2}",
        "{min_new_tokens: 7, eos_token_id: 2}",
        "suppress_tokens: [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]",
        "max_time: 1.0e-09",
        "forced_eos_token_id: 5",
    ],
)
def test_sources_ask_for_nothing_in_decoding(wish, model, examples, tokenizer):
    """No key of a source's generation config changes what is written: decoding is greedy; and the
    model keeps the config."""
    wilful = copy.deepcopy(model)
    own = GenerationConfig(**yaml.safe_load(wish))
    wilful.generation_config = own
    assert run(wilful, examples, tokenizer) == run(model, examples, tokenizer)
    assert wilful.generation_config is own
    assert bool(own.do_sample) == ("do_sample" in wish)


def test_special_tokens_are_kept():
    """The plain config has a model's special tokens; those that a decoder is forced to write are an
    encoder-decoder's alone."""
    tokens = {
        "bos_token_id": 3,
        "eos_token_id": [4, 5],
        "pad_token_id": 6,
        "decoder_start_token_id": 7,
    }
    forced = {"forced_bos_token_id": 8, "forced_eos_token_id": 9}
    own = GenerationConfig(**tokens, **forced, do_sample=True)
    for encodes in (False, True):
        model = SimpleNamespace(
            generation_config=own, config=SimpleNamespace(is_encoder_decoder=encodes)
        )
        kept = encoding.plain_generation(model).to_diff_dict()
        kept.pop("transformers_version")
        assert kept == {**tokens, **(forced if encodes else {})}


def test_language_counts(model, tokenizer, monkeypatch):
    """A value is 1 where the answer and the language are right; ``correct`` is the answer alone."""
    texts = ["答えは18ドルです。", "The answer is 18 dollars.", "答えは19ドルです。"]
    monkeypatch.setattr(writing, "respond", lambda *given: [Written(each, True) for each in texts])
    asked = [Example("one", "18")] * 3
    language = {"code": "ja", "threshold": 0.5}
    scores = run(model, asked, tokenizer, extract="last_number", language=language)
    assert scores == Scores(
        [1.0, 0.0, 0.0], outputs=texts, correct=[True, True, False], truncated=[False] * 3
    )


def test_refusals(model, broken_model, examples, tokenizer):
    """Answers that are no numbers, unknown languages, responses that do not fit and logits that are
    no numbers are refused."""
    with refused(r"^the model's logits are not finite$"):
        run(broken_model, examples, tokenizer)
    for keys, message in (
        ({"extract": "last_number"}, r"e0: the answer '.*' is not a number"),
        ({"language": {"code": "jp"}}, r"'jp' is not a language .* it knows af, .* ja, "),
        ({"max_new_tokens": 64}, "the model has 64 positions"),
    ):
        with refused(message):
            run(model, examples, tokenizer, **keys)
