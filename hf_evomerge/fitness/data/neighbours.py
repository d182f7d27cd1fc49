"""Neighbours of words: words that have nearly the same embedding in a model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WORDS = r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+"  # but of Thai, Japanese and Chinese
_MOST = 10  # neighbours of a word
_ROWS = 8192  # of the embeddings that are compared at a time


# Words that are used alike have embeddings that point alike, so a neighbour may stand where a word
# stands: TinyBERT (arXiv:1909.10351, section 3.2) makes sentences so. How alike depends on the
# model. So a neighbour's cosine is at least half that of the nearest.
#
# A neighbour is of one kind with its word: "Anna" may become "Mary" and not "apple". Tokens that
# begin with a space ("Ġapple") and others ("apple") are kept apart, for both stand for one word.
def neighbours(
    words: Collection[str], tokenizer: Any, embeddings: torch.Tensor
) -> dict[str, list[str]]:
    """Find the neighbours of words that are one token each.

    Args:
        words: The words.
        tokenizer: Tokenizer of the model.
        embeddings: (V, D) input embeddings of the model.

    Returns:
        The neighbours of each word, the nearest first; words that have none are missing.
    """
    count = min(len(tokenizer), len(embeddings))
    tokens = tokenizer.convert_ids_to_tokens(range(count))
    decoded = tokenizer.batch_decode([[number] for number in range(count)])
    texts = [text.strip() for text in decoded]
    whole = [number for number, text in enumerate(texts) if re.fullmatch(WORDS, text)]
    kinds = {number: _kind(tokens[number], texts[number]) for number in whole}
    # of two tokens that are one word, the one that begins with a space
    rows = {texts[number]: number for number in sorted(whole, key=kinds.__getitem__)}
    members = defaultdict[tuple[bool, ...], list[int]](list)
    for number in whole:
        members[kinds[number]].append(number)
    asked = defaultdict[tuple[bool, ...], list[str]](list)
    for word in words:
        if word in rows:
            asked[kinds[rows[word]]].append(word)
    found = dict[str, list[str]]()
    for kind, own in asked.items():
        others = members[kind]
        cosines = _cosines(embeddings, [rows[word] for word in own], others)
        best = cosines.topk(min(_MOST + 1, len(others)))  # a word itself is among them
        for word, values, places in zip(own, *(each.tolist() for each in best), strict=True):
            near = {
                texts[others[place]]: value for value, place in zip(values, places, strict=True)
            }
            near.pop(word, None)
            least = max(near.values(), default=0.0) / 2
            found[word] = [text for text, value in near.items() if value >= least > 0][:_MOST]
    return {word: near for word, near in found.items() if near}


# In float64, so that the order of neighbours is the same on any number of threads.
def _cosines(embeddings: torch.Tensor, rows: Sequence[int], others: Sequence[int]) -> torch.Tensor:
    """(rows, others) cosines between rows of the embeddings."""
    import torch

    unit = torch.nn.functional.normalize
    own = unit(embeddings[rows].double())
    pieces = [others[start : start + _ROWS] for start in range(0, len(others), _ROWS)]
    return torch.cat([own @ unit(embeddings[piece].double()).T for piece in pieces], dim=1)


def _kind(token: str, text: str) -> tuple[bool, ...]:
    """Kind of a token: where it stands in a word, its case, and whether it is a number."""
    inside = token[:1].isalnum() and token[:1] != "Ġ"
    return (not inside, text.islower(), text.istitle(), text.isupper(), text.isdigit())
