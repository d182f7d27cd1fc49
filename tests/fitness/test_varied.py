"""Prompts that are made of others by exchanging words."""

import re

import pytest
import torch

from hf_evomerge.fitness import Example
from hf_evomerge.fitness.data.neighbours import neighbours
from hf_evomerge.fitness.data.varied import varied

TOLD = [
    "taro has 3 keys . taro loses 1 .",
    "emma has 5 pears . emma finds 2 .",
    "taro has 5 keys . taro finds 9 .",
    "emma has 3 pears . emma loses 4 .",
]


@pytest.fixture
def word_embeddings():
    """A tokenizer of seven words and their embeddings."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vectors = {
        "cat": [1.0, 0.0],
        "dog": [1.0, 0.1],
        "cow": [1.0, 1.0],
        "sky": [1.0, 3.0],
        "Anna": [0.9, 0.0],
        "Mary": [0.5, 0.5],
        "7": [1.0, 0.0],
    }
    model = models.WordLevel({word: place for place, word in enumerate(vectors)}, unk_token="7")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    return tokenizer, torch.tensor([*vectors.values()])


def made(prompts, count, avoid=(), **more):
    """Prompts that are made of others."""
    examples = [Example(prompt, "an answer", **more) for prompt in prompts]
    found = varied(examples, count, [Example(prompt, "") for prompt in avoid])
    assert all(each.made and not each.answer for each in found)
    return [each.prompt for each in found]


def test_words_are_exchanged_that_stand_in_one_place():
    """Each prompt is new and of words that stood between the same neighbours; what is named twice
    stays one; the same prompts come again."""
    found = made(TOLD, 6)
    assert len(set(found)) == 6
    assert not set(found) & set(TOLD)
    for prompt in found:
        name, _, number, *_, again, act, _, _ = prompt.split()
        assert name == again
        assert name in ("taro", "emma")
        assert number in ("3", "5")
        assert act in ("loses", "finds")
    assert made(TOLD, 6) == found


def test_a_second_round_finds_more():
    """A word that came by an exchange has neighbours of its own, so that its place is exchanged
    next."""
    found = made(["Al sees cats", "Bo sees cats", "Al feeds cats", "Al feeds dogs"], 4)
    assert set(found) == {"Bo feeds cats", "Bo feeds dogs", "Al sees dogs", "Bo sees dogs"}


def test_characters_are_words_where_none_are_written_apart():
    """Japanese without spaces is exchanged by character."""
    found = made(["猫が三匹いる", "猫が五匹いる", "犬が三匹いる"], 1)
    assert found == ["犬が五匹いる"]


def test_held_out_prompts_are_not_made():
    """What other splits hold is left out; where nothing can be made, none come."""
    prompts = ["the cat sleeps", "the dog sleeps", "the cat runs"]
    assert made(prompts, 1) == ["the dog runs"]
    assert "the dog runs" not in made(prompts, 9, avoid=["the  dog runs"])
    assert made(["one", "another thing"], 9) == []
    template = [Example(f"Q: {prompt}", "", content=prompt) for prompt in prompts]
    held = Example("Q: the dog runs", "", content="the dog runs")
    assert "the dog runs" not in [each.content for each in varied(template, 9, [held])]
    assert all(each.prompt.startswith("Q: ") for each in varied(template, 9, [held]))


def test_special_tokens_stay_and_no_prompt_gets_longer():
    """A model has room for the longest prompt that was given, and a chat's marks mean what they
    mean."""
    assert made(["<s>a b", "<t>a b", "<s>c b"], 9) == ["<t>c b"]
    assert made(["[INST]a b", "[/INST]a b", "[INST]c b"], 9) == ["[/INST]c b"]
    prompts = ["a cat sleeps now", "a cat runs now", "a hippopotamus runs"]
    found = made(prompts, 99)
    assert {"a cat runs", "a cat sleeps"} <= set(found)
    assert max(map(len, found)) == len(prompts[2])  # and no "a hippopotamus runs now"


def test_each_source_has_prompts_of_its_own_words():
    """Words of one source come into no prompt of another one, all get as many as the poorest, and
    chats stay chats."""
    examples = [
        Example(f"{name} {word} {act}", "", source=name, chat=name == "a")
        for name in "ab"
        for word, act in (("x" + name, "runs"), ("y" + name, "runs"), ("x" + name, "sleeps"))
    ]
    examples += [Example("b zb runs", "", source="b")]
    found = varied(examples, 1, [])
    assert [(each.source, each.chat) for each in found] == [("a", True), ("b", False)]
    assert found[0].prompt == "a ya sleeps"
    assert found[1].prompt in ("b yb sleeps", "b zb sleeps")


def test_one_neighbour_on_either_side_is_enough_where_all_differ():
    """Of prompts in which no words have the same neighbours, words are exchanged that stand between
    spaces; the first one stays the first, and marks stay."""
    found = made(["mirror : d a k =", "mirror : b f e ="], 20)
    assert len(set(found)) == 20
    for prompt in found:
        first, colon, *letters, end = prompt.split()
        assert (first, colon, end) == ("mirror", ":", "=")
        assert set(letters) <= set("dakbfe")


def test_words_of_every_prompt_stay():
    """Only what differs is exchanged, also where one neighbour is enough; there are as many as were
    asked for, although words with more in common give some."""
    prompts = ["x w g ; call ?", "t ; call ?", "u ; call ?", "d w ; call ?", "t q ; call ?"]
    found = made(prompts, 40)
    assert len(set(found)) == 40
    for prompt in found:
        *letters, mark, ask, end = prompt.split()
        assert (mark, ask, end) == (";", "call", "?")
        assert set(letters) <= set("xwgtudq")


def test_words_are_joined_where_exchanging_them_gives_too_few():
    """The beginning of a word and the end of another one that stands where it does are a new word,
    in which letters may stand for others; the other words stay. Where exchanging gives enough,
    words stay whole."""
    prompts = ["turn tegi plain =", "turn velt plain =", "turn nune plain ="]
    found = made(prompts, 40)
    assert len(set(found)) == 40
    begins = {each[:size] for each in ("tegi", "velt", "nune") for size in range(1, 5)}
    ends = {each[size:] for each in ("tegi", "velt", "nune") for size in range(1, 5)}
    joined = 0
    for prompt in found:
        first, word, *rest = prompt.split()
        assert (first, rest) == ("turn", ["plain", "="])
        assert set(word) <= set("tegiveltnune")
        joined += any(word[:at] in begins and word[at:] in ends for at in range(1, len(word) + 1))
    assert 10 < joined < 30


def test_no_prompt_has_more_unknown_tokens_than_its_own():
    """Where the vocabulary is of whole words none are joined, neither of the prompts' words nor of
    their neighbours; what is unknown in a given prompt is no hindrance."""
    vocabulary = {"the", "cat", "dog", "cow", "hen", "lion", "wolf", "sleeps", "eats"}
    pairs = [
        ("cat", "sleeps"),
        ("dog", "eats"),
        ("cow", "sleeps"),
        ("hen", "eats"),
        ("cat", "eats"),
    ]
    examples = [Example(f"the {animal} {verb} naïvely", "") for animal, verb in pairs]

    def near(words):
        return {"cat": ["lion"], "dog": ["wolf"]}

    def unknown(prompt):
        return sum(word not in vocabulary for word in prompt.split())

    words = {
        word for each in varied(examples, 30, [], near, unknown) for word in each.prompt.split()
    }
    assert words - vocabulary == {"naïvely"}
    assert words & {"lion", "wolf"}
    joined = {word for each in varied(examples, 30, [], near) for word in each.prompt.split()}
    assert joined - vocabulary > {"naïvely"}


def test_letters_stand_for_letters():
    """An exchange of letters keeps which are the same, their case, and what is a digit."""
    found = made(["say aab1B", "say aab2C"], 10)
    words = {prompt.split()[1] for prompt in found}
    assert "bba2C" in words or "bba1B" in words
    for word in words:
        assert re.fullmatch(r"([ab]+)([12]?)([BC]?)", word)


def test_words_that_are_alike_are_exchanged_everywhere():
    """Cat and dog are alike, for both sleep; so what runs may be either, as in
    arXiv:1904.09545."""
    found = made(["a cat sleeps", "a dog sleeps", "the big cat runs home"], 1)
    assert found == ["the big dog runs home"]
    words = {word for prompt in TOLD for word in prompt.split()}
    assert {word for prompt in made(TOLD, 99) for word in prompt.split()} == words


def test_words_that_no_prompt_has_come_as_often_as_is_to_be_expected():
    """Where each word occurs once, all are exchanged for neighbours, or for these with another end;
    where each occurs twice, none is."""
    once = [f"the {word} sleeps" for word in ("cat", "dog", "cow", "pig", "hen")]
    asked = list[str]()

    def near(words):
        asked.extend(words)
        return {"cat": ["lion", "dog"], "dog": ["wolf"]}

    examples = [Example(prompt, "") for prompt in [*once, "this big cat runs", "a small dog eats"]]
    words = set()
    for each in varied(examples, 30, [], near):
        words |= set(each.prompt.split())
    assert {"cat", "dog"} <= set(asked)
    assert {"lion", "wolf"} & words
    assert len(words) > 20  # with other ends too
    twice = [Example(f"{prompt} {end}", "") for prompt in once for end in ("now", "here")]
    twice += [Example(f"the {word} sleeps twice", "") for word in ("cat", "dog")]
    known = {word for example in twice for word in example.prompt.split()}
    assert {word for each in varied(twice, 3, [], near) for word in each.prompt.split()} <= known


def test_neighbours_point_alike_and_are_of_one_kind(word_embeddings):
    """The nearest come first, of one kind, and none whose cosine is below half of the nearest's."""
    tokenizer, vectors = word_embeddings
    found = neighbours(["cat", "Anna", "absent"], tokenizer, vectors)
    assert found == {"cat": ["dog", "cow"], "Anna": ["Mary"]}
