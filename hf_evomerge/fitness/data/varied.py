"""More prompts like some prompts, for tasks without answers: words are exchanged that stand in one
place, or joined.

After Andreas (arXiv:1904.09545, section 3): what occurs between the same neighbours may stand in
for each other.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

from ..example import Example, by_source

# Special tokens such as <eos> or [INST], which stay; words; and single characters of scripts that
# write no words apart (Thai, Japanese, Chinese).
_MARKS = r"<[^<>\s]+>|\[[^][\s]+]"
_WORDS = r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+"
_PIECES = re.compile(f"{_MARKS}|{_WORDS}|.", re.DOTALL)
_MISSES = 1000  # prompts in a row that are there already, before no more are looked for

Pieces = list[str]


# Two words are alike that stand between the same four pieces somewhere: (a, b, w, c, d) in one
# prompt and (a, b, w', c, d) in another; a space is a piece. A word may become one that is like it,
# wherever it stands. All places of w change alike: "taro has 3 keys. taro loses 1" names one person
# afterwards too. Words of every prompt, as "Passive" of "Passive: Two actors cover the toy", say
# what is asked, and stay.
#
# Where this gives too few, as of "mirror : d a k =" and "mirror : b f a =", in which no letters
# have the same neighbours, one piece before a word and one after it must be the same.
#
# Where that gives too few, words are joined: the beginning of w and the end of such a w' are a new
# word, to which a rule on letters or digits applies as well. "turn tegi" and "turn velt" give "turn
# telt". In half of these prompts each letter then stands for another, and each digit: "turn sild".
# Of 16 strings few letters would stand beside each other else. Whole words come first: they have a
# meaning, and are in every vocabulary.
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
        everywhere = set(prompts[0]).intersection(*prompts)
        places = defaultdict[tuple[str, ...], dict[str, None]](dict)  # words as they come
        edge = [""] * reach
        for pieces in prompts:
            whole = [*edge, *pieces, *edge]
            for number, piece in enumerate(pieces, reach):
                if piece[0].isalnum() and piece not in everywhere:
                    before = whole[number - reach : number]
                    places[(*before, *whole[number + 1 : number + 1 + reach])][piece] = None
        alike = defaultdict[str, dict[str, None]](dict)
        for words in places.values():
            for word in words:
                alike[word] |= words
        self._alike = {word: [*words] for word, words in alike.items() if len(words) > 1}
        self._characters = sorted(set().union(*self._alike))

    def words(self, pieces: Pieces, rng: random.Random) -> Pieces:
        """Exchange each word for one that is like it, or keep it."""
        chosen = {word: rng.choice(self._alike[word]) for word in self._changed(pieces)}
        return [chosen.get(piece, piece) for piece in pieces]

    def joined_words(self, pieces: Pieces, rng: random.Random) -> Pieces:
        """Exchange words, give each the end of one that is like it, or keep it; and in half of the
        prompts exchange letters, and digits."""
        pieces = self.words(pieces, rng)
        table = self._permuted(rng) if rng.random() < 0.5 else {}
        chosen = dict[str, str]()
        for word in self._changed(pieces):
            new = word
            other = rng.choice(self._alike[word])
            if other != word:
                new = word[: rng.randint(1, len(word))] + other[rng.randint(1, len(other)) :]
            chosen[word] = new.translate(table)
        return [chosen.get(piece, piece) for piece in pieces]

    def _changed(self, pieces: Pieces) -> list[str]:
        """Words that may change, each once."""
        return [word for word in dict.fromkeys(pieces) if word in self._alike]

    def _permuted(self, rng: random.Random) -> dict[int, str]:
        """A letter for each letter of the words that may change, and a digit for each digit."""
        table = dict[int, str]()
        for is_kind in (str.islower, str.isupper, str.isdigit):
            own = [each for each in self._characters if is_kind(each)]
            table |= zip(map(ord, own), rng.sample(own, len(own)), strict=True)
        return table
