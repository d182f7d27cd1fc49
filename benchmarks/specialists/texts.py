"""The texts that the demo's specialists are trained on: their kinds, their vocabulary, and its
tokenizer.

Words and sentences are the demo's own (`language.py`). Which texts a model reads is decided in
`train.py`.
"""
# ruff: noqa: RUF001 (the full-width question mark is Japanese)

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from specialists.language import (
    KANJI,
    LARGEST,
    NUMBER_ANSWER,
    PEOPLE,
    PLACES,
    QUESTION_FRAME,
    QUESTIONS,
    SENTENCES,
    THINGS,
    Language,
    Phrase,
    Scene,
    number_answer,
    split_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Task = Literal[
    "solve", "extract", "recall", "compare", "translate", "count", "story", "word", "copy"
]

POSITIONS = 1024
"""Tokens that a model takes: sixteen problems with their answers before the one that is asked."""
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
ASKED = {
    **QUESTIONS,
    "first": Phrase("what is the first number ?", "初め の 数 は 何 です か ？"),
    "second": Phrase("what is the second number ?", "次 の 数 は 何 です か ？"),
    "change": Phrase("is that more or fewer ?", "増えました か 減りました か ？"),
}
FRAMES = {
    "question": QUESTION_FRAME,
    "translate": Phrase("translate : {text} answer :", "訳 : {text} 答え :"),
    "count": Phrase("count :", "数えて :"),
    "copy": Phrase("copy : {text} answer :", "写し : {text} 答え :"),
}
ANSWERS = {
    "number": NUMBER_ANSWER,
    "more": Phrase("more", "増えました"),
    "fewer": Phrase("fewer", "減りました"),
}


@dataclass(frozen=True)
class TextKind:
    """A kind of text that a model can be trained on.

    Attributes:
        task: what the text asks for. "solve" is the only one that calculates; "extract" asks for
            one of the two numbers, "recall" how many the first sentence counts, the second being
            about somebody else's things; "story" is plain text; "copy" asks for kanji numerals in
            any order, again.
        text: language of the two sentences; "mixed" draws it anew for each of them.
        asked: language of the question and of the words around it.
        answer: language of the answer.
        largest: largest number in the sentences.
        japanese: names of the sentences that may be in Japanese, None for all; the others are
            written in English whatever `text` says.
        smallest: smallest number in the sentences.
        digits: whether a Japanese answer writes its number in digits too.
        second: largest second number in the sentences, None for `largest`.
    """

    task: Task
    text: Language | Literal["mixed"]
    asked: Language
    answer: Language
    largest: int = LARGEST
    japanese: tuple[str, ...] | None = None
    smallest: int = 0
    digits: bool = False
    second: int | None = None


class Example(NamedTuple):
    """A prompt (may be empty) and what has to follow it, as words between spaces."""

    prompt: str
    answer: str


def vocabulary() -> list[str]:
    """Every word of the language, special tokens first; the position of a word is its token id."""
    phrases = [*PEOPLE, *THINGS, *PLACES]
    for table in (SENTENCES, ASKED, FRAMES, ANSWERS):
        phrases += table.values()
    words = {
        word for phrase in phrases for text in phrase for word in text.split() if "{" not in word
    }
    words |= {str(number) for number in range(2 * LARGEST + 1)}
    words |= set(KANJI)
    return [*SPECIAL_TOKENS, *sorted(words)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer: one token a word, `<bos>` in front, no `<eos>` behind, pads on the
    left."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(vocabulary())}
    pad, bos, eos, unk = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk,
        padding_side="left", model_max_length=POSITIONS, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def write(kind: TextKind, rng: random.Random) -> Example:
    """Writes one text of a kind; arithmetic problems that belong to a split of `problems` are left
    out."""
    if kind.task == "word":
        word = rng.choice((*PEOPLE, *THINGS, *PLACES))
        frame = getattr(FRAMES["translate"], kind.asked)
        return Example(frame.format(text=getattr(word, kind.asked)), getattr(word, kind.answer))
    if kind.task == "count":
        start = rng.randint(0, 2 * LARGEST - 4)
        step = rng.choice((1, -1))
        numbers = [str(number) for number in range(start, start + 5)][::step]
        return Example(
            " ".join([getattr(FRAMES["count"], kind.asked), *numbers[:2]]), " ".join(numbers[2:])
        )
    if kind.task == "copy":
        numerals = " ".join(rng.sample(KANJI, rng.randint(1, 3)))
        return Example(getattr(FRAMES["copy"], kind.asked).format(text=numerals), numerals)
    example = _write_scene(kind, rng)
    while kind.task == "solve" and split_of(example.prompt) is not None:
        example = _write_scene(kind, rng)
    return example


def mixture(parts: Sequence[tuple[float, TextKind]], rng: random.Random) -> Iterator[Example]:
    """Endless texts; each is of a kind drawn with the weight that stands before it."""
    weights = [weight for weight, _ in parts]
    kinds = [kind for _, kind in parts]
    while True:
        yield write(rng.choices(kinds, weights)[0], rng)


def _write_scene(kind: TextKind, rng: random.Random) -> Example:
    """Writes a text that is about a scene: all tasks but single words and counting."""
    scene = second = Scene.draw(rng, kind.smallest, kind.largest, kind.second)
    names = (scene.first, scene.second)
    if kind.task == "recall":
        names = (scene.first, "owns")
        thing = rng.choice([thing for thing in THINGS if thing != scene.thing])
        second = replace(scene, who=scene.other, a=scene.b, thing=thing)
    sentences = []
    for name, view in zip(names, (scene, second), strict=True):
        language: Language = rng.choice(("en", "ja")) if kind.text == "mixed" else kind.text
        if kind.japanese is not None and name not in kind.japanese:
            language = "en"
        sentences.append(view.say(SENTENCES[name], language))
    if kind.task == "story":
        return Example("", " ".join(sentences))
    if kind.task == "translate":
        phrase = rng.choice(
            (SENTENCES[scene.first], SENTENCES[scene.second], QUESTIONS[scene.question])
        )
        frame = getattr(FRAMES["translate"], kind.asked)
        return Example(
            frame.format(text=scene.say(phrase, kind.asked)), scene.say(phrase, kind.answer)
        )
    question = scene.question
    right = scene.a + scene.sign * scene.b
    if kind.task == "recall":
        question = "there" if scene.first == "holds" else "now"
        right = scene.a
    if kind.task == "extract":
        question = rng.choice(("first", "second"))
        right = scene.a if question == "first" else scene.b
    answer = number_answer(right, kind.answer)
    if kind.digits:
        answer = getattr(ANSWERS["number"], kind.answer).format(x=right)
    if kind.task == "compare":
        question = "change"
        answer = getattr(ANSWERS["more" if scene.sign > 0 else "fewer"], kind.answer)
    text = " ".join([*sentences, scene.say(ASKED[question], kind.asked)])
    return Example(getattr(FRAMES["question"], kind.asked).format(text=text), answer)
