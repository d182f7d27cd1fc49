"""More prompts like some prompts, for tasks without answers: words are exchanged that stand in one
place, or joined.

After Andreas (arXiv:1904.09545, section 3): what occurs between the same neighbours may stand in
for each other.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from ..example import Example, by_source

# Special tokens such as <eos> or [INST], which stay; words; and single characters of scripts that
# write no words apart (Thai, Japanese, Chinese).
_MARKS = r"<[^<>\s]+>|\[[^][\s]+]"
_WORDS = r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+"
_PIECES = re.compile(f"{_MARKS}|{_WORDS}|.", re.DOTALL)
_ROUNDS = 3
_MISSES = 1000  # prompts in a row that are there already, before no more are looked for

Pieces = list[str]
Place = tuple[str, ...]
Words = dict[Place, dict[str, None]]
"""Words by the place where they stand, in the order in which they come."""


# A word w of a prompt may become w' where both stand somewhere between the same four pieces:
# (a, b, w, c, d) in one prompt and (a, b, w', c, d) in another; a space is a piece. All places of w
# change alike: "taro has 3 keys. taro loses 1" names one person afterwards too. Neighbours have
# changed after one round, and the next one finds more.
#
# Where this gives fewer prompts than there are, words are joined: the beginning of w and the end of
# such a w' are a new word, to which a rule on letters or digits applies as well. "turn tegi" and
# "turn velt" give "turn telt". Whole words are better where there are enough: they have a meaning.
#
# Where that gives fewer too, as of "mirror : d a k =" and "mirror : b f a =", in which no letters
# have the same neighbours, one piece before a word and one after it must be the same.
#
# All sources get as many as the one of which the fewest can be made, so that none outweighs
# another. No prompt gets longer than the longest that was given, which a model has room for.
def varied(examples: Sequence[Example], count: int, avoid: Collection[Example]) -> list[Example]:
    """Make more examples, without answers, of the prompts of some examples.

    Args:
        examples: Examples with prompts of one kind.
        count: Number of new ones of each source that examples belong to; fewer come where the
            prompts of one have too few places in common.
        avoid: Examples whose prompts are not made.
    """
    seen = {_plain(example.prompt) for example in (*examples, *avoid)}
    made = [_made(own, count, seen) for own in by_source(examples).values()]
    fewest = min(map(len, made), default=0)
    return [example for own in made for example in own[:fewest]]


def _made(examples: Sequence[Example], count: int, seen: set[str]) -> list[Example]:
    """Examples of one source; their prompts are added to `seen`."""
    rng = random.Random(0)
    split: list[Pieces] = [_PIECES.findall(example.prompt) for example in examples]
    longest = max(len(example.prompt) for example in examples)
    found = list[Example]()
    misses = 0
    ways = [(2, False), (2, True), (1, False)]  # pieces on either side; whether words are joined
    reach, is_joined = ways.pop(0)
    words = _words(split, reach)
    while len(found) < count:
        if misses == _MISSES:
            if not ways or len(found) >= len(examples):
                break
            reach, is_joined = ways.pop(0)
            words = _words(split, reach)
            misses = 0
        misses += 1
        number = rng.randrange(len(examples))
        pieces = split[number]
        for _ in range(_ROUNDS):
            pieces = _exchanged(pieces, reach, words, rng)
        if is_joined:
            pieces = _joined(pieces, reach, words, rng)
        prompt = "".join(pieces)
        if len(prompt) > longest or _plain(prompt) in seen:
            continue
        seen.add(_plain(prompt))
        misses = 0
        own = examples[number]
        name = f"{own.id}, varied {len(found)}"
        new = replace(own, prompt=prompt, answer="", content="", id=name, made=True)
        found.append(new)
    return found


def _plain(prompt: str) -> str:
    """A prompt whatever its space."""
    return " ".join(prompt.split())


def _exchanged(pieces: Pieces, reach: int, words: Words, rng: random.Random) -> Pieces:
    """Exchange each word for one that stands where it does; or keep it."""
    chosen = {word: rng.choice(others) for word, others in _choices(pieces, reach, words).items()}
    return [chosen.get(piece, piece) for piece in pieces]


def _joined(pieces: Pieces, reach: int, words: Words, rng: random.Random) -> Pieces:
    """Give each word the end of one that stands where it does; or keep it."""
    chosen = dict[str, str]()
    for word, others in _choices(pieces, reach, words).items():
        other = rng.choice(others)
        if other != word:
            begin = word[: rng.randint(1, len(word))]
            chosen[word] = begin + other[rng.randint(1, len(other)) :]
    return [chosen.get(piece, piece) for piece in pieces]


def _choices(pieces: Pieces, reach: int, words: Words) -> dict[str, list[str]]:
    """Words that may take the place of each word, itself included."""
    choices = defaultdict[str, dict[str, None]](dict)
    for word, place in _places(pieces, reach):
        choices[word][word] = None
        choices[word] |= words.get(place, {})
    return {word: [*others] for word, others in choices.items()}


def _words(prompts: Sequence[Pieces], reach: int) -> Words:
    """Words of all prompts by their places."""
    words: Words = defaultdict(dict)
    for pieces in prompts:
        for word, place in _places(pieces, reach):
            words[place][word] = None
    return words


def _places(pieces: Pieces, reach: int) -> Iterator[tuple[str, Place]]:
    """Words, each with so many pieces before it and after it."""
    edge = [""] * reach
    whole = [*edge, *pieces, *edge]
    for number, piece in enumerate(pieces, reach):
        if piece[0].isalnum():
            before = whole[number - reach : number]
            yield piece, (*before, *whole[number + 1 : number + 1 + reach])
