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


# A word w of a prompt may become w' where both stand somewhere between the same four pieces:
# (a, b, w, c, d) in one prompt and (a, b, w', c, d) in another; a space is a piece. All places of w
# change alike: "taro has 3 keys. taro loses 1" names one person afterwards too. Neighbours have
# changed after one round, and the next one finds more. Words of every prompt, as "Passive" of
# "Passive: Two actors cover the toy", say what is asked, and stay.
#
# Where this gives too few, as of "mirror : d a k =" and "mirror : b f a =", in which no letters
# have the same neighbours, one piece before a word and one after it must be the same.
#
# Where that gives too few, words are joined: the beginning of w and the end of such a w' are a new
# word, to which a rule on letters or digits applies as well. "turn tegi" and "turn velt" give "turn
# telt". Whole words come first: they have a meaning, and are in every vocabulary.
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
    near = _Exchange(split, reach=2)
    found = list[Example]()
    for change in (near.words, _Exchange(split, reach=1).words, near.joined_words):
        misses = 0
        while len(found) < count and misses < _MISSES:
            misses += 1
            number = rng.randrange(len(examples))
            prompt = "".join(change(split[number], rng))
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


class _Exchange:
    """Words of prompts by the places where they stand.

    Args:
        prompts: Pieces of each prompt.
        reach: How many pieces on either side make a place.
    """

    def __init__(self, prompts: Sequence[Pieces], reach: int) -> None:
        self._reach = reach
        self._everywhere = set(prompts[0]).intersection(*prompts)
        self._words = defaultdict[Place, dict[str, None]](dict)  # in the order in which they come
        for pieces in prompts:
            for word, place in self._places(pieces):
                self._words[place][word] = None

    def words(self, pieces: Pieces, rng: random.Random) -> Pieces:
        """Exchange each word for one that stands where it does, or keep it; in rounds."""
        for _ in range(_ROUNDS):
            choices = self._choices(pieces)
            chosen = {word: rng.choice(others) for word, others in choices.items()}
            pieces = [chosen.get(piece, piece) for piece in pieces]
        return pieces

    def joined_words(self, pieces: Pieces, rng: random.Random) -> Pieces:
        """Exchange words, and give each the end of one that stands where it does, or keep it."""
        pieces = self.words(pieces, rng)
        chosen = dict[str, str]()
        for word, others in self._choices(pieces).items():
            other = rng.choice(others)
            if other != word:
                begin = word[: rng.randint(1, len(word))]
                chosen[word] = begin + other[rng.randint(1, len(other)) :]
        return [chosen.get(piece, piece) for piece in pieces]

    def _choices(self, pieces: Pieces) -> dict[str, list[str]]:
        """Words that may take the place of each word, itself included."""
        choices = defaultdict[str, dict[str, None]](dict)
        for word, place in self._places(pieces):
            choices[word][word] = None
            choices[word] |= self._words.get(place, {})
        return {word: [*others] for word, others in choices.items()}

    def _places(self, pieces: Pieces) -> Iterator[tuple[str, Place]]:
        """Words that may change, each with its place."""
        reach = self._reach
        edge = [""] * reach
        whole = [*edge, *pieces, *edge]
        for number, piece in enumerate(pieces, reach):
            if piece[0].isalnum() and piece not in self._everywhere:
                before = whole[number - reach : number]
                yield piece, (*before, *whole[number + 1 : number + 1 + reach])
