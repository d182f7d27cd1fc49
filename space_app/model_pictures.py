"""The pictures of a path and of a merge for the page, each with a table that says the same."""

from collections.abc import Sequence

from edits import Route
from texts import details, escape, number, table

from hf_evomerge.pictures.marks import Spot
from hf_evomerge.pictures.path import hop_words, path_scene, path_title, said
from hf_evomerge.pictures.scene import MIDDLE, WIDE
from hf_evomerge.pictures.svg import responsive
from hf_evomerge.pictures.weights import Weights, group_name, weights_scene


def path_picture(
    way: Route,
    labels: Sequence[str],
    layers: Sequence[int],
    *,
    gated: bool = True,
    select: bool = False,
    listed: bool = True,
) -> str:
    """The route of the hidden state on screens of every width (see `path_scene`), and a table of
    the hops where `listed`.

    With `select` a hop can be chosen, and which one is shows.
    """
    path = way.path
    selected = way.selected if select else None
    picture = responsive(
        lambda width: path_scene(path, labels, layers, gated=gated, selected=selected, width=width),
        MIDDLE if select else WIDE,  # where a path is edited, its answers are beside it
    )
    if not listed:
        return picture
    heads = ["hop", "layer", "scale", *["adds"] * gated]
    lines = [
        [at + 1, hop_words(hop, labels), number(hop.scale), *[said(shares)] * gated]
        for at, (hop, shares) in enumerate(zip(path.hops, path.added(gated=gated), strict=True))
    ]
    return picture + details(
        "The same as a table", table(heads, lines, caption=path_title(path), mark=selected)
    )


def weights_picture(
    weights: Weights, *, listed: bool = True, among: dict[str, Spot] | None = None
) -> str:
    """The weights of a recipe's merge in each layer, on screens of every width (see
    `weights_scene`).

    With `listed` every number is there on demand; `among` sets the axes.
    """
    if not weights.rows:
        return f'<p class="ev-faint">This merge has no numbers to draw. {escape(weights.title)}</p>'
    picture = responsive(lambda width: weights_scene(weights, width, among), WIDE)
    lines = []
    for group in weights.groups:
        lines.append([group_name(group), *(number(row.at(group)) for row in weights.rows)])
    listing = table(["layers", *(row.name for row in weights.rows)], lines, caption=weights.title)
    return picture + details("Every number", listing) if listed else picture
