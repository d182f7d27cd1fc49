import copy
from unittest.mock import Mock

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_evomerge.fitness import Example, render_prompt
from hf_evomerge.fitness.text.encoding import encode_pair, encode_prompt, length_batches

from .conftest import refused


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE that merges ``1`` and ``8``, and a space with the digit after it."""
    vocabulary = {"<eos>": 0, "<bos>": 1}
    for letter in [*sorted(pre_tokenizers.ByteLevel.alphabet()), "18", "Ġ1", "Ġ18"]:
        vocabulary[letter] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocabulary, [("Ġ", "1"), ("Ġ1", "8"), ("1", "8")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        "<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", bos_token="<bos>")


@pytest.mark.parametrize(
    ("prompt", "separator", "answer", "expected"),
    [
        ("A:", " ", "18", [" 18"]),  # as in running text
        ("A:", "", "18", ["18"]),
        ("A: ", "", "18", ["18"]),  # " 18" would reach over the boundary
        ("1", "", "8", ["8"]),  # so would "18"
        ("1", "", "88", ["8", "8"]),
        ("A", "", "18 18", ["18", " 18"]),
    ],
)
def test_boundary(byte_level, prompt, separator, answer, expected):
    """The prompt keeps the tokens that it has when generated from, and the answer has those of
    running text where it can."""
    prompt_ids, answer_ids = encode_pair(Example(prompt, answer), separator, byte_level)
    assert prompt_ids == encode_prompt(Example(prompt, answer), byte_level)
    assert byte_level.decode(prompt_ids) == f"<bos>{prompt}"
    assert [byte_level.decode([token]) for token in answer_ids] == expected


def test_appended_eos_is_taken_off(byte_level):
    """An end-of-text token that the tokenizer appends does not end a prompt that goes on, but one
    in the text stays."""
    assert byte_level("1")["input_ids"][-1] == byte_level.eos_token_id
    assert encode_prompt(Example("1", "8"), byte_level)[-1] != byte_level.eos_token_id
    assert encode_prompt(Example("1<eos>", "8"), byte_level)[-1] == byte_level.eos_token_id


def test_chat(tokenizer):
    """A chat is written by the tokenizer's template, which alone decides about special tokens;
    without one it is refused."""
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if "
        "add_generation_prompt %}assistant{% endif %}"
    )
    example = Example("one two", "three", "e", chat=True, system="zero")
    assert render_prompt(example, chatty) == "system zero user one two assistant"
    assert render_prompt(Example("one two", "three"), chatty) == "one two"
    spy = Mock(wraps=chatty, eos_token=None, chat_template="x", return_value={"input_ids": [1]})
    spy.special_tokens_map = {}
    encode_prompt(example, spy)
    assert spy.call_args.kwargs == {"add_special_tokens": False, "verbose": False}
    with refused("no chat template"):
        render_prompt(example, tokenizer)
    chatty.chat_template = "{{ raise_exception('System role not supported') }}"
    with refused("refuses e: System role not supported"):
        render_prompt(example, chatty)


def test_empty_texts(tokenizer):
    """An empty prompt becomes the beginning-of-text token, and a text without any token is refused
    by name."""
    assert encode_prompt(Example("", "one"), tokenizer) == [tokenizer.bos_token_id]
    with refused("e: the answer ' ' has no tokens"):
        encode_pair(Example("one", " ", "e"), " ", tokenizer)
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = None
    with refused("e: the prompt '' has no tokens"):
        encode_prompt(Example("", "one", "e"), bare)


def test_length_batches():
    """Every index is in exactly one batch, and lengths never fall from batch to batch."""
    lengths = [5, 1, 4, 1, 3, 9, 2]
    batches = length_batches(lengths, 3)
    assert batches == [[1, 3, 6], [4, 2, 0], [5]]
