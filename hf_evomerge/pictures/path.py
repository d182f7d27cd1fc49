"""The route of the hidden state through the layers of the sources, as arXiv:2403.13187 draws it."""

from collections.abc import Sequence

from ..recipes.layer_path import Hop, LayerPath
from .marks import Group, Line, Mark, Rect, Spot, Symbol, Text
from .scene import NARROW, PIXELS, WIDE, Axes, Panel, Scene, counted, number, source_colour, sparse
from .style import SOURCE_SHAPES

_GAP = 26.0  # pixels above the layers of a source, for its name
_MOST_LAYERS = 4096


def name_of(labels: Sequence[str], source: int) -> str:
    """The name of a source."""
    return labels[source] if 0 <= source < len(labels) else f"source {source}"


def hop_words(hop: Hop, labels: Sequence[str]) -> str:
    """The layers of a hop in words, such as ``maths, layer 3``."""
    return " + ".join(
        f"{name_of(labels, term.source)}, layer {term.layer}"
        + ("" if term.weight == 1 else f" (\N{MULTIPLICATION SIGN} {number(term.weight)})")
        for term in hop.terms
    )


def path_title(path: LayerPath) -> str:
    """Say how many hops there are, over how many layers."""
    return f"{counted(len(path), 'hop')} over {counted(len(path.unique_layers), 'layer')}"


def path_scene(
    path: LayerPath,
    labels: Sequence[str],
    layers: Sequence[int],
    *,
    gated: bool = True,
    selected: int | None = None,
    width: int | None = WIDE,
) -> Scene:
    """Draw the route of the hidden state: hops from left to right, the layers of each source from
    bottom to top.

    A symbol stands for a term, as wide as the scale of its hop and hollow where that is negative. A
    line leads to it, as wide as what it adds, in the colour of its source. Layers that the path
    leaves out are grey. Across are the hops, from 1; up are the layers, those of each source above
    a gap for its name.

    Args:
        path: The path.
        labels, layers: Name and number of layers of each source; as many as the path needs where it
            is not known.
        gated: Whether scales are gates of what each hop adds; see `LayerPath.added`.
        selected: The hop that a visitor has selected, from 0; None where none can be.
        width: The width in pixels of a page, on which a long path scrolls; None for a file, on
            which it is drawn narrow.
    """
    scrolls = width is not None
    width = width or WIDE
    draft = _Draft(path, layers, gated, selected is not None, width, scrolls)
    grid = draft.grid
    title = path_title(path)
    marks = [mark for source in draft.bases for mark in _layer_rows(draft, source)]
    marks += _route(draft)
    marks += [_source_name(draft, labels, source) for source in draft.bases]
    marks += [_hop(draft, at, labels, selected) for at in range(len(path))]
    every = sparse(draft.pitch, 22)
    shown = [
        hop
        for hop in range(1, draft.room + 1)
        if hop == 1 or (hop % every == 0 and (hop - 1) * draft.pitch > 28)
    ]
    marks += [
        Text((hop, -0.5), "hop 1" if hop == 1 else str(hop), "tick", anchor="middle", shift=(0, 16))
        for hop in shown
    ]
    if folded := [
        name_of(labels, at)[:36]
        for at, count in enumerate(layers)
        if count and at not in draft.bases
    ]:
        marks.append(
            Text((0.5, -0.5), f"not on the path: {', '.join(folded)}", "tick", shift=(0, 32))
        )
    label = f"Path picture: {title}. Arrow keys go from hop to hop."
    panels = (Panel(grid, marks), Panel(PIXELS, [Text((4, 18), title, "title")]))
    return Scene(
        draft.width,
        grid.bottom + (38 if folded else 22),
        panels,
        label,
        draft.width > width or width == NARROW,
    )


class _Draft:
    """Places of hops and layers on a picture of a given width."""

    def __init__(
        self,
        path: LayerPath,
        layers: Sequence[int],
        gated: bool,
        selects: bool,
        width: int,
        scrolls: bool,
    ) -> None:
        self.path = path
        self.gated = gated
        self.narrow = width == NARROW
        room = self.room = len(path)
        self.added = path.added(gated=gated)
        # room for what goes in and what comes out
        left, after = (34.0, 26.0) if self.narrow else (92.0, 68.0)
        near, far = (10.0, 26.0) if self.narrow else (7.0, 84.0)
        self.pitch = max(min((width - left - after) / room, far), near if scrolls else 0.0)
        self.counts = dict(enumerate(layers))
        for source, layer in path.unique_layers:
            self.counts[source] = min(max(self.counts.get(source, 0), layer + 1), _MOST_LAYERS)
        visited = sorted({source for source, _ in path.unique_layers})
        high = (520, 18.0 if self.narrow else 26.0)
        if selects:  # edited, its answer is on the same screen
            high = (320, 16.0)
        # Rows share the height among the layers that are drawn: at most the second number of
        # `high`, at least 6 pixels. Then a gap for the name above each source.
        self.row = max(min(high[0] / sum(self.counts[source] for source in visited), high[1]), 6.0)
        rows = 0.0
        self.bases = dict[int, float]()  # of each source, the row of its lowest layer
        for source in visited:
            self.bases[source] = rows
            rows += self.counts[source] + _GAP / self.row
        self.width = max(left + self.pitch * room + after, min(width, 348))
        top = 34.0
        ends = (left + self.pitch * room, top + self.row * rows)
        self.grid = Axes(left, top, *ends, (0.5, room + 0.5), (-0.5, rows - 0.5))
        # A scale of 1 has the same size in every picture, unless a larger scale needs the room:
        # both units are set by the largest number, which is at least 1.
        largest = max(1.0, *map(abs, path.scales))
        most = max(max(each) for each in self.added)
        # half the width of a symbol of scale 1
        self.unit = max(min(self.pitch * 0.46, self.row * 0.8, 15.0), 5.0) / largest
        self.share = min(
            5.0, max(min(self.pitch * 0.6, 12.0), 4.0) / max(most, 1e-9)
        )  # the width of a line for 1

    def line(self, share: float) -> float:
        """The width in pixels of a line for what a hop adds."""
        return max(share * self.share, 0.7)

    def spots(self, at: int) -> list[Spot]:
        """Return the spots of the terms of a hop, counted from 0."""
        return [(at + 1, self.bases[term.source] + term.layer) for term in self.path.hops[at].terms]


def _layer_rows(draft: _Draft, source: int) -> list[Mark]:
    """A bar for each layer of a source, tinted where the path visits it."""
    used = {layer for visited, layer in draft.path.unique_layers if visited == source}
    every = sparse(draft.row, 14, (1, 2, 4, 8, 16, 32, _MOST_LAYERS))
    bars: list[Mark] = []
    for layer in range(draft.counts[source]):
        row = draft.bases[source] + layer
        bars.append(
            Rect(
                ((draft.room + 1) / 2, row),
                (draft.room, 0.86),
                "used" if layer in used else "unused",
            )
        )
        if layer % every == 0:
            bars.append(Text((0.5, row), str(layer), "tick", anchor="end", shift=(-6, 4)))
    return [Group(bars, colour=source_colour(source))]


def _source_name(draft: _Draft, labels: Sequence[str], source: int) -> Text:
    count = draft.counts[source]
    visits = len({layer for at, layer in draft.path.unique_layers if at == source})
    words = f"{name_of(labels, source)[:36]}   {visits} of {count} layers"
    return Text(
        (0.5, draft.bases[source] + count - 0.5),
        words,
        "name halo",
        source_colour(source),
        shift=(0, -6),
    )


def _route(draft: _Draft) -> list[Mark]:
    """The way of the hidden state: in from the left, a lane for each term of a sum, and out to the
    right."""
    spots = [draft.spots(at) for at in range(len(draft.path))]
    lanes = list[Mark]()
    plain = list[Mark]()
    left, right = draft.grid.x_range
    here = (left, sum(y for _, y in spots[0]) / len(spots[0]))
    if draft.narrow:
        words = [
            Text(
                here, "tokens", "title", anchor="middle", shift=(12 - draft.grid.left, 0), angle=-90
            )
        ]
    else:
        words = [Text(here, "tokens \N{RIGHTWARDS ARROW}", "title", anchor="end", shift=(-20, 4))]
    for at, (there, hop, shares) in enumerate(
        zip(spots, draft.path.hops, draft.added, strict=True)
    ):
        looks = [
            (source_colour(term.source), draft.line(share))
            for term, share in zip(hop.terms, shares, strict=True)
        ]
        ends = list(zip(there, looks, strict=True))
        lanes += [Line((here, spot), "flow", colour, width=width) for spot, (colour, width) in ends]
        here = there[0]
        if len(there) > 1:  # a sum: its lanes meet half way to the next hop
            after = at + 2 if at + 1 < len(spots) else max(right, at + 1 + 12 / draft.pitch)
            here = ((at + 1 + after) / 2, sum(y for _, y in there) / len(there))
            lanes += [
                Line((spot, here), "flow", colour, width=width) for spot, (colour, width) in ends
            ]
            plain.append(Symbol(here, 3.0, "join"))
    end = (max(right, here[0] + 6 / draft.pitch), here[1])
    plain += [Line((here, end), "route"), Symbol(end, 3.0, "arrow", shape="right", shift=(3, 0))]
    if draft.narrow:
        words.append(Text(end, "answer", "title", anchor="middle", shift=(10, 0), angle=90))
    else:
        words.append(Text(end, "answer", "title", shift=(9, 4)))
    return [*lanes, *plain, *words]


def _hop(draft: _Draft, at: int, labels: Sequence[str], selected: int | None) -> Mark:
    """The symbols of a hop, with an invisible pad around each, so that a finger can hit a small
    one."""
    hop = draft.path.hops[at]
    tip = f"Hop {at + 1}: {hop_words(hop, labels)}, scale {number(hop.scale)}"
    if draft.gated:
        changes = "its layers' changes count" if len(hop.terms) > 1 else "its layer's change counts"
        tip += f", {changes} {said(draft.added[at])} times"
    pad = (1.0, (44 if draft.narrow else 24) / draft.row)
    marks: list[Mark] = [Rect(spot, pad, "pad") for spot in draft.spots(at)]
    size = max(abs(hop.scale) * draft.unit, 2.5)
    negative = hop.scale < 0
    for spot, term in zip(draft.spots(at), hop.terms, strict=True):
        shape = SOURCE_SHAPES[term.source % len(SOURCE_SHAPES)]
        marks.append(
            Symbol(
                spot, size, f"markshape{' hollow' * negative}", source_colour(term.source), shape
            )
        )
    pressed = at if selected is not None else None
    return Group(
        marks, f"hop{' negative' * negative}", tip=tip, hop=pressed, selected=at == selected
    )


def said(shares: Sequence[float]) -> str:
    """Write what the terms of a hop add."""
    return " + ".join(number(share, 2) for share in shares)
