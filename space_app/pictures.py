"""The pictures of a path and of a merge for the page, each with a table that says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edits import Route
from texts import details, escape, number, table

from hf_evomerge.pictures.path import hop_words, path_scene, path_title, said
from hf_evomerge.pictures.scene import MIDDLE, WIDE
from hf_evomerge.pictures.svg import responsive
from hf_evomerge.pictures.weights import group_name, weights_of, weights_scene


def path_picture(
    way: Route,
    labels: Sequence[str],
    layers: Sequence[int],
    *,
    gated: bool = True,
    select: bool = False,
    hops: int = 0,
    listed: bool = True,
) -> str:
    """The route of the hidden state, on screens of every width.

    Args:
        way: The path.
        labels: The names of the sources.
        layers: The number of layers of each source; as many as the path needs where it is not known.
        gated: Whether scales are gates of what each hop adds.
        select: Whether a hop can be chosen, and which one is shows.
        hops: Room for so many hops, so that pictures of several paths are alike.
        listed: Whether a table of the hops follows, for those who read rather than see.
    """
    path, selected = way.path, way.selected if select else None
    picture = responsive(
        lambda width: path_scene(path, labels, layers, gated=gated, selected=selected, room=hops, width=width),
        MIDDLE if select else WIDE,  # where a path is edited, its answers are beside it
    )
    if not listed:
        return picture
    heads = ["hop", "layer", "scale", *(["adds"] if gated else [])]
    lines = [
        (at, hop_words(hop, labels), number(hop.scale), said(shares))[: len(heads)]
        for at, (hop, shares) in enumerate(zip(path.hops, path.added(gated=gated), strict=True), 1)
    ]
    return picture + details("The same as a table", table(heads, lines, caption=path_title(path), mark=selected))


def weights_picture(merge: Mapping[str, Any], labels: Sequence[str]) -> str:
    """The parameters of a merge per layer group, on screens of every width.

    Args:
        merge: The `merge` part of a recipe.
        labels: The names of the sources.
    """
    weights = weights_of(merge, labels)
    if not weights.rows:
        return f'<p class="ev-faint">This merge has no numbers to draw. {escape(weights.title)}</p>'
    lines = [[group_name(group), *(number(row.at(group)) for row in weights.rows)] for group in weights.groups]
    listed = table(["layers", *(row.name for row in weights.rows)], lines, caption=weights.title)
    return responsive(lambda width: weights_scene(weights, width)) + details("The same as a table", listed)
