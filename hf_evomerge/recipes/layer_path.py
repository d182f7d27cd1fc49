"""The path that the hidden state takes through the layers of the sources: terms, hops and their
text form.

Knows nothing of tensors: this module must stay importable in milliseconds. The text of a hop is the
same in a recipe, in a search file and in a model's ``config.json``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..errors import PathError, shown

MAX_HOPS = 4096
MAX_FACTOR = 1e6  # of a scale, or of a term's weight
SCALED = {
    "stream": "the hidden state (stream)",
    "mlp_delta": "what the MLP of the hop before adds (mlp_delta)",
}
"""What a scale multiplies, in words, by ``scale_target``."""
_NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_TERM = re.compile(r"^\s*(\d{1,9}):(\d{1,9})(?:\s*\*\s*(" + _NUMBER + r"))?\s*$")
_RANGE = re.compile(r"^\s*(\d{1,9}):(\d{1,18})-(\d{1,18})\s*$")
_REPEAT = re.compile(r"^(.*\S)\s+x(\d{1,18})\s*$")


@dataclass(frozen=True, order=True)
class Term:
    """Layer of a source, with the weight of its output in the hop.

    Attributes:
        source: Index of the source, in the order of the recipe.
        layer: Index of the layer in that source, from 0.
        weight: Factor of the layer's output; 1 for a serial hop.
    """

    source: int
    layer: int
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.source}:{self.layer}" + ("" if self.weight == 1 else f"*{self.weight!r}")


@dataclass(frozen=True)
class Hop:
    """Step of the path: ``h_k = sum_i w_i * Layer_i(scale * h_{k-1})``.

    Attributes:
        terms: The layers that run side by side on the same input; one for the serial paths of
            arXiv:2403.13187.
        scale: The factor beta on the way into the hop (the paper's ``W_ij``, compiled to one number
            per hop).
    """

    terms: tuple[Term, ...]
    scale: float = 1.0

    @property
    def is_serial(self) -> bool:
        """True where the hop runs a single layer with weight 1."""
        return len(self.terms) == 1 and self.terms[0].weight == 1

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))


@dataclass(frozen=True)
class LayerPath:
    """A list of hops: the whole route from the embeddings to the final norm.

    Attributes:
        hops: The steps, in the order in which they run.

    Example:
        >>> path = LayerPath.parse("0:0-1, 1:1, 0:1").with_scales([1, 1, 0.8, 1])
        >>> len(path.hops), path.hops[2].scale
        (4, 0.8)
    """

    hops: tuple[Hop, ...]

    def __len__(self) -> int:
        return len(self.hops)

    def __str__(self) -> str:
        return ", ".join(self.as_text())

    @property
    def is_serial(self) -> bool:
        """True where every hop runs one layer with weight 1, so that the path can be folded into a
        plain model."""
        return all(hop.is_serial for hop in self.hops)

    @property
    def scales(self) -> list[float]:
        """The scale of each hop."""
        return [hop.scale for hop in self.hops]

    @property
    def unique_layers(self) -> list[tuple[int, int]]:
        """The distinct ``(source, layer)`` pairs in the order of their first visit: what a
        checkpoint stores."""
        return list(
            dict.fromkeys((term.source, term.layer) for hop in self.hops for term in hop.terms)
        )

    def added(self, *, gated: bool) -> list[list[float]]:
        """Compute how much each term of each hop adds to the stream, 1 being all that its layer
        would.

        Hop k makes ``h <- sum_i w_i Layer_i(s h)``. A layer with a norm in front does not see the
        size of what it reads. So beside the embeddings term i of hop k counts ``w_i / m_k``; m_k is
        the product of ``s`` and ``sum_i w_i`` up to k.

        Args:
            gated: Whether the layers have a norm in front and the scales multiply the stream; else
                a term counts its weight times the scale of its hop.
        """
        # m_k = prod_{j <= k} s_j sum_i w_ij is the factor of the embeddings in the stream behind
        # hop k. Only ratios matter to layers with a norm in front, so what term i adds, w_i, is
        # compared with that.
        sizes = []
        size = 1.0
        for hop in self.hops:
            size *= hop.scale * sum(term.weight for term in hop.terms)
            # a scale of 0 leaves nothing of what was before
            gated = gated and 1e-9 < abs(size) < 1e9
            sizes.append(
                [
                    abs(term.weight / size if gated else term.weight * hop.scale)
                    for term in hop.terms
                ]
            )
        return sizes

    def as_text(self) -> list[str]:
        """Format each hop as a string, without the scales: ``["0:0", "0:1 + 1:1*0.5"]``."""
        return [str(hop) for hop in self.hops]

    def with_scales(self, scales: Sequence[float]) -> LayerPath:
        """The same hops with other scales; raises `PathError` unless there is one finite number per
        hop."""
        scales = list(scales)
        if len(scales) != len(self.hops):
            raise PathError(
                f"scales: {len(scales)} numbers for a path of {len(self.hops)} hops; give "
                "one per hop"
            )
        for position, scale in enumerate(scales):
            if not _is_number(scale):
                raise PathError(
                    f"scales[{position}]: {shown(scale)} is not a number up to {MAX_FACTOR:g}"
                )
        return LayerPath(
            tuple(replace(hop, scale=float(s)) for hop, s in zip(self.hops, scales, strict=True))
        )

    @classmethod
    def of(
        cls, layers: Iterable[tuple[int, int]], scales: Sequence[float] | None = None
    ) -> LayerPath:
        """A serial path from ``(source, layer)`` pairs."""
        path = cls(tuple(Hop((Term(source, layer),)) for source, layer in layers))
        return path if scales is None else path.with_scales(scales)

    @classmethod
    def parse(cls, text: str | Sequence[str], scales: Sequence[float] | None = None) -> LayerPath:
        """Read a path.

        Args:
            text: Hops separated by commas, or a list of them: ``0:3`` is layer 3 of source 0,
                ``0:0-15`` a range (backwards where the first number is the larger), ``1:4-7 x2`` a
                repeated one, ``0:3*0.5 + 1:3*0.5`` a hop of two terms.
            scales: One finite number per hop; all 1 by default.

        Raises:
            PathError: The text cannot be read, or the path is empty or longer than `MAX_HOPS`.

        Example:
            >>> str(LayerPath.parse("0:0-2, 1:3 x2"))
            '0:0, 0:1, 0:2, 1:3, 1:3'
        """
        pieces = text.split(",") if isinstance(text, str) else text
        hops: list[Hop] = []
        for position, piece in enumerate(pieces):
            hops.extend(_parse_piece(piece, position, room=MAX_HOPS - len(hops)))
        if not hops:
            raise PathError("path: no hops; a path has at least one, such as 0:0-15")
        path = cls(tuple(hops))
        return path if scales is None else path.with_scales(scales)


def _parse_piece(piece: str, position: int, room: int) -> list[Hop]:
    """The hops of one comma-separated piece, at most `room` of them."""
    if not isinstance(piece, str):
        raise PathError(f"path[{position}]: {shown(piece)} is not text such as 0:3 or 0:0-15")
    # Grammar of a piece, of which a path is a list:
    #
    #   piece = range [" x" COUNT] | hop [" x" COUNT]
    #   range = SOURCE ":" FIRST "-" LAST          backwards where LAST is the smaller
    #   hop   = term {"+" term},   term = SOURCE ":" LAYER ["*" WEIGHT]
    #
    # `str` writes hops alone, without ranges and counts, and weights with `repr`, so that reading
    # what was written gives the same floats. The length is checked before a list of it is made:
    # "0:0 x999999999" is text from somebody else.
    body = piece
    count = 1
    if repeat := _REPEAT.match(piece):
        body = repeat[1]
        count = int(repeat[2])
    if span := _RANGE.match(body):
        source, first, last = (int(span[group]) for group in (1, 2, 3))
        length = abs(last - first) + 1
        step = 1 if last >= first else -1
        _check_room(length * count, room, position)
        return [Hop((Term(source, layer),)) for layer in range(first, last + step, step)] * count
    terms = []
    for part in re.split(r"(?<![eE])\+", body):  # "1e+3" is one number
        match = _TERM.match(part)
        if not match:
            raise PathError(
                f"path[{position}]: cannot read {shown(piece.strip())}; write SOURCE:LAYER, "
                "SOURCE:FIRST-LAST, "
                "SOURCE:LAYER*WEIGHT + SOURCE:LAYER*WEIGHT, or any of the first two followed "
                "by xCOUNT"
            )
        weight = 1.0 if match[3] is None else float(match[3])
        if not _is_number(weight):
            raise PathError(
                f"path[{position}]: the weight in {shown(piece.strip())} is beyond {MAX_FACTOR:g}"
            )
        terms.append(Term(int(match[1]), int(match[2]), weight))
    _check_room(count, room, position)
    return [Hop(tuple(terms))] * count


def _is_number(value: object) -> bool:
    """Tell whether a value is a scale or a weight that can be calculated with: no larger than
    `MAX_FACTOR`, and no NaN."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_FACTOR
    )


def _check_room(wanted: int, room: int, position: int) -> None:
    """Refuse a piece that would take the path beyond `MAX_HOPS`, before anything is allocated."""
    if wanted < 1 or wanted > room:
        raise PathError(
            f"path[{position}]: {wanted} hops; a path has between 1 and {MAX_HOPS} hops in all"
        )
