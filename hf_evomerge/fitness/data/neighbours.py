"""Neighbours of words: words that have nearly the same embedding in a model."""

from __future__ import annotations

import re
from collections.abc import Collection
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
    import torch

    count = min(len(tokenizer), len(embeddings))
    tokens = tokenizer.convert_ids_to_tokens(range(count))
    decoded = tokenizer.batch_decode([[number] for number in range(count)])
    texts = [text.strip() for text in decoded]
    whole = [number for number, text in enumerate(texts) if re.fullmatch(WORDS, text)]
    kinds = {number: _kind(tokens[number], texts[number]) for number in whole}
    wanted = {texts[number]: number for number in sorted(whole, key=kinds.__getitem__)}
    wanted = {word: wanted[word] for word in words if word in wanted}
    if not wanted:
        return {}
    unit = torch.nn.functional.normalize
    own = unit(embeddings[[*wanted.values()]].float())
    pieces = [whole[start : start + _ROWS] for start in range(0, len(whole), _ROWS)]
    cosines = torch.cat([own @ unit(embeddings[piece].float()).T for piece in pieces], dim=1)
    found = dict[str, list[str]]()
    for (word, number), row in zip(wanted.items(), cosines, strict=True):
        alike = [
            (cosine, texts[other])
            for other, cosine in zip(whole, row.tolist(), strict=True)
            if kinds[other] == kinds[number] and other != number and cosine > 0
        ]
        alike.sort(key=lambda each: -each[0])
        if near := [text for cosine, text in alike[:_MOST] if 2 * cosine >= alike[0][0]]:
            found[word] = near
    return found


def _kind(token: str, text: str) -> tuple[bool, ...]:
    """Kind of a token: where it stands in a word, its case, and whether it is a number."""
    inside = token[:1].isalnum() and token[:1] != "Ġ"
    return (not inside, text.islower(), text.istitle(), text.isupper(), text.isdigit())
