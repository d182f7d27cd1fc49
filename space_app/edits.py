"""Edits of a path as pure functions: drop a hop, repeat one, scale one; and the changed recipe and
a link. Knows no tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property
from urllib.parse import urlencode

from published import Published, as_float
from texts import SpaceError, counted, number

from hf_evomerge.errors import RecipeError
from hf_evomerge.pictures.path import hop_words
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.strict_yaml import validate

MAX_HOPS = 512  # and as many layers to run: a hop of several terms runs several
MAX_SCALE = 10.0
_MOST_LINK = 30_000  # characters of an edit in a link


@dataclass(frozen=True)
class Route:
    """A path with a scale per hop, and the hop, from 0, that the next edit changes; a hop is a text
    such as ``0:3``. Without hops it is of a model that has no path."""

    hops: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    selected: int = 0

    @classmethod
    def of(cls, published: Published) -> Route:
        """The published path."""
        return cls(published.path, published.scales)

    def __len__(self) -> int:
        return len(self.hops)

    @cached_property
    def path(self) -> LayerPath:
        """The hops with their scales, as the package has them."""
        return LayerPath.parse(self.hops, self.scales)

    @property
    def link(self) -> str:
        """Link to it, as a part of the page's address."""
        plain = json.dumps([self.hops, self.scales], separators=(",", ":"))
        return "?" + urlencode({"edit": plain})

    def changes(self, published: Published) -> bool:
        """Tell whether it is another path than the published one."""
        return (self.hops, self.scales) != (published.path, published.scales)

    def select(self, index: object) -> Route:
        """The same route, looking at another hop; raises `SpaceError` where there is no such
        hop."""
        chosen = as_float(index)
        if chosen is None or not 0 <= chosen < len(self):
            raise SpaceError(f"There is no hop {index!r:.40}; the path has {len(self)}.")
        return replace(self, selected=int(chosen))

    # Every edit changes the list of pairs (hop, scale), of which a route is made again.
    @property
    def _steps(self) -> list[tuple[str, float]]:
        return list(zip(self.hops, self.scales, strict=True))

    @classmethod
    def _of(cls, steps: list[tuple[str, float]], selected: int) -> Route:
        hops, scales = zip(*steps, strict=True)
        return cls(hops, scales, selected)

    def drop(self) -> Route:
        """Drop the selected hop; raises `SpaceError` where it is the last one left."""
        if len(self) == 1:
            raise SpaceError("A path needs at least one hop; this is the last one.")
        steps = self._steps
        del steps[self.selected]
        return self._of(steps, min(self.selected, len(steps) - 1))

    def repeat(self) -> Route:
        """Repeat the selected hop, right after itself; raises `SpaceError` where the path is too
        long for that."""
        steps = self._steps
        steps.insert(self.selected, steps[self.selected])
        longer = self._of(steps, self.selected + 1)
        if _layers_run(longer.path) > MAX_HOPS:
            raise SpaceError(f"A path runs at most {MAX_HOPS} layers here.")
        return longer

    def move(self, by: int) -> Route:
        """Move the selected hop earlier or later, as far as there is room."""
        there = max(0, min(len(self) - 1, self.selected + by))
        steps = self._steps
        steps.insert(there, steps.pop(self.selected))
        return self._of(steps, there)

    def scale(self, value: object) -> Route:
        """Set another scale on the way into the selected hop."""
        scales = list(self.scales)
        scales[self.selected] = _scale(value, self.selected)
        return replace(self, scales=tuple(scales))


def route(hops: object, scales: object = None, *, holds: Sequence[str] = ()) -> Route:
    """Check a path that came through the API: a text per hop or range of layers, as in a recipe,
    and a number per hop.

    Layers that no hop of the published model (`holds`) runs are not in the checkpoint. Raises
    `EvoMergeError`.
    """
    if isinstance(hops, str) or not isinstance(hops, Sequence) or not hops:
        raise SpaceError('The path must be a list of hops, such as ["0:0", "0:1", "1:1"].')
    path = LayerPath.parse(hops[: MAX_HOPS + 1])
    if (runs := max(len(hops), _layers_run(path))) > MAX_HOPS:
        raise SpaceError(f"The path runs {runs:,} layers; here it runs at most {MAX_HOPS}.")
    there = LayerPath.parse(holds).unique_layers if holds else path.unique_layers
    if absent := next((layer for layer in path.unique_layers if layer not in there), None):
        raise SpaceError(
            f"Layer {absent[0]}:{absent[1]} is not part of this model; an edit can only use "
            "layers that it has."
        )
    texts = tuple(path.as_text())
    if scales is None or scales == []:
        return Route(texts, (1.0,) * len(path))
    if isinstance(scales, str) or not isinstance(scales, Sequence) or len(scales) != len(path):
        raise SpaceError(f"The scales must be a list of {len(path)} numbers, one per hop.")
    return Route(texts, tuple(_scale(value, at) for at, value in enumerate(scales)))


def of_link(text: str, published: Published) -> Route:
    """Read what `Route.link` wrote; raises `EvoMergeError` where that is no path of this model."""
    try:
        if len(text) > _MOST_LINK:
            raise ValueError
        hops, scales = json.loads(text)
    except (TypeError, ValueError, RecursionError) as cause:
        raise SpaceError("The link's edit cannot be read.") from cause
    return route(hops, scales, holds=published.path)


def by_share(published: Published) -> list[Route]:
    """The published path looking at each hop, what adds most first; none where it has one hop."""
    way = Route.of(published)
    if len(way) < 2:
        return []
    added = [sum(map(abs, shares)) for shares in way.path.added(gated=published.gated)]
    order = sorted(range(len(way)), key=lambda at: (-added[at], -at))
    return [way.select(at) for at in order]


def ideas(published: Published) -> list[Route]:
    """Two edits that change little, to begin with; none where the path has one hop."""
    least = by_share(published)[-1:]
    return [edit for way in least for edit in (way.drop(), way.repeat())]


def _layers_run(path: LayerPath) -> int:
    return sum(len(hop.terms) for hop in path.hops)


def _scale(value: object, at: int) -> float:
    checked = as_float(value)
    if checked is None or abs(checked) > MAX_SCALE:
        raise SpaceError(
            f"The scale of hop {at + 1} must be a number between -{MAX_SCALE:g} and {MAX_SCALE:g}."
        )
    return checked


def difference(before: Route, after: Route, labels: Sequence[str]) -> str:
    """Say what was changed, in a sentence for each change; three at most."""
    gone = list[int]()
    come = list[int]()
    words = []
    # Two lists of hops are aligned as lines of a text are by diff. A hop that is gone in one place
    # and comes in another was moved; what is left is dropped, new, or run more often.
    matcher = SequenceMatcher(None, before.hops, after.hops, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind != "equal":
            gone += range(a, b)
            come += range(c, d)
            continue
        for at, to in zip(range(a, b), range(c, d), strict=True):
            if before.scales[at] != (scale := after.scales[to]):
                words.append(
                    f"{_hop_words(before, at, labels)} has scale {number(scale)}, not "
                    f"{number(before.scales[at])}"
                )
    for at in gone:
        there = next((to for to in come if after.hops[to] == before.hops[at]), None)
        if there is None:
            words.append(f"{_hop_words(before, at, labels)} is dropped")
        else:
            come.remove(there)
            words.append(f"{_hop_words(before, at, labels)} is now hop {there + 1}")
    for hop in dict.fromkeys(after.hops[to] for to in come):
        runs = after.hops.count(hop)
        if hop in before.hops:
            name = _hop_words(before, before.hops.index(hop), labels)
            words.append(f"{name} runs {'twice' if runs == 2 else f'{runs} times'}")
        else:
            words.append(f"{_hop_words(after, after.hops.index(hop), labels)} is new")
    said = [f"{word[0].upper()}{word[1:]}." for word in words[:3]]
    more = f" And {counted(len(words) - 3, 'more change')}." if len(words) > 3 else ""
    return " ".join(said) + more if words else "The path is as published."


def _hop_words(way: Route, at: int, labels: Sequence[str]) -> str:
    return f"hop {at + 1} ({hop_words(way.path.hops[at], labels)})"


def changed_recipe(published: Published, changed: Route) -> Recipe:
    """The recipe of a model with another path.

    Where the model has no recipe, its configuration names the sources. Raises `RecipeError`.
    """
    config = {
        key: published.config[key]
        for key in ("scale_target", "embedding_source")
        if key in published.config
    }
    flow = {**config, "path": list(changed.hops), "scales": list(changed.scales)}
    kept = (
        published.recipe.model_dump(exclude={"flow", "built"})
        if published.recipe is not None
        else {}
    )
    fields = {"sources": published.sources_of_config, **kept, "flow": flow}
    return validate(Recipe, fields, RecipeError)
