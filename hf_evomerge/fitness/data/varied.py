"""More prompts like some prompts, for tasks without answers: words are exchanged that stand in one
place, or joined.

After Andreas (arXiv:1904.09545, section 3): what occurs between the same neighbours may stand in
for each other.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from ..example import Example, by_source
from .neighbours import WORDS

# Special tokens such as <eos> or [INST], which stay; words; and single characters of scripts that
# write no words apart (Thai, Japanese, Chinese).
_MARKS = r"<[^<>\s]+>|\[[^][\s]+]"
_PIECES = re.compile(f"{_MARKS}|{WORDS}|.", re.DOTALL)
_MISSES = 1000  # prompts in a row that are there already, before no more are looked for

Pieces = list[str]
Near = Mapping[str, Sequence[str]]
"""The neighbours of words; see `neighbours`."""


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
# What is learned from few words fails at others. So a word that is exchanged becomes one that no
# prompt has as often as the next one of its kind would be such a word by Good and Turing's estimate
# (Good 1953, equation 9): n_1 / n, where the words that are like it occur n times, and n_1 of them
# once. The new word is a neighbour of one of these by a model's embeddings. In half of the cases,
# and where there is no neighbour, it gets the end of another: models answer words too that they
# read in pieces.
#
# A prompt with more unknown tokens than the one that it was made of is no prompt of the model's: a
# vocabulary of whole words has no joined ones.
#
# All sources get as many as the one of which the fewest can be made, so that none outweighs
# another. No prompt gets longer than the longest that was given, which a model has room for.
def varied(
    examples: Sequence[Example],
    count: int,
    avoid: Collection[Example],
    near: Callable[[Collection[str]], Near] | None = None,
    unknown: Callable[[str], int] = lambda prompt: 0,
) -> list[Example]:
    """Make more examples, without answers, of the prompts of some examples.

    Args:
        examples: Examples with prompts of one kind.
        count: Number of new ones of each source that examples belong to; fewer come where the
            prompts of one have too few places in common.
        avoid: Examples whose prompts are not made.
        near: Finds words that no prompt has; without, words are those of the prompts.
        unknown: Counts the unknown tokens of a prompt.
    """
    seen = {_plain(example.prompt) for example in (*examples, *avoid)}
    pieces = dict.fromkeys(each for own in examples for each in _PIECES.findall(own.prompt))
    found = near([*pieces]) if near else None
    made = [_made(own, count, seen, found, unknown) for own in by_source(examples).values()]
    fewest = min(map(len, made), default=0)
    return [example for own in made for example in own[:fewest]]


def _made(
    examples: Sequence[Example],
    count: int,
    seen: set[str],
    near: Near | None,
    unknown: Callable[[str], int],
) -> list[Example]:
    """Examples of one source; their prompts are added to `seen`."""
    rng = random.Random(0)
    split: list[Pieces] = [_PIECES.findall(example.prompt) for example in examples]
    longest = max(len(example.prompt) for example in examples)
    close = _Exchange(split, 2, near)
    wide = _Exchange(split, 1, near)
    found = list[Example]()
    exchanged = set(seen)
    for change, renew in (
        (close.words, close.new_words if near is not None else None),
        (wide.words, wide.new_words if near is not None else None),
        (close.joined_words, None),
    ):
        misses = 0
        while len(found) < count and misses < _MISSES:
            misses += 1
            number = rng.randrange(len(examples))
            pieces = change(split[number], rng)
            # first: how many exchanges there are does not depend on new words
            if (plain := _plain("".join(pieces))) in exchanged:
                continue
            own = examples[number]
            prompt = "".join(renew(pieces, rng) if renew else pieces)
            if len(prompt) > longest or _plain(prompt) in seen:
                continue
            if unknown(prompt) > unknown(own.prompt):
                continue
            exchanged.add(plain)
            seen.add(_plain(prompt))
            misses = 0
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
        near: The neighbours of words.
    """

    def __init__(self, prompts: Sequence[Pieces], reach: int, near: Near | None) -> None:
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
        self._times = Counter(piece for pieces in prompts for piece in pieces)
        self._new = dict[str, list[str]]()
        for word, exchanged in self._alike.items():
            own = [new for each in exchanged for new in (near or {}).get(each, ())]
            self._new[word] = [new for new in own if new not in self._times]

    def words(self, pieces: Pieces, rng: random.Random) -> Pieces:
        """Exchange each word for one that is like it, or keep it."""
        chosen = {word: rng.choice(self._alike[word]) for word in self._changed(pieces)}
        return [chosen.get(piece, piece) for piece in pieces]

    def new_words(self, pieces: Pieces, rng: random.Random) -> Pieces:
        """Exchange words for some that no prompt has, as often as such a word is to be expected."""
        chosen = dict[str, str]()
        for word in self._changed(pieces):
            times = [self._times[each] for each in self._alike[word]]
            if rng.random() < times.count(1) / sum(times):
                chosen[word] = self._new_word(word, rng)
        return [chosen.get(piece, piece) for piece in pieces]

    def _new_word(self, word: str, rng: random.Random) -> str:
        """A neighbour of a word that is like this one; half of them with the end of another."""
        new = rng.choice(self._new[word] or self._alike[word])
        if self._new[word] and rng.random() < 0.5:
            return new
        return _joined(new, rng.choice(self._alike[word]), rng)

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
                new = _joined(word, other, rng)
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


def _joined(first: str, second: str, rng: random.Random) -> str:
    """The beginning of a word and the end of another."""
    return first[: rng.randint(1, len(first))] + second[rng.randint(1, len(second)) :]
