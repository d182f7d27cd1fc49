"""Edits of a path as pure functions: drop a hop, repeat one, scale one; and the changed recipe as YAML. Knows no tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from hops import expanded, terms
from published import as_float, listing, mapping
from texts import SpaceError, counted, number

MAX_HOPS = 512  # and as many layers to run: a hop of several terms runs several
MAX_SCALE = 10.0


@dataclass(frozen=True)
class Route:
    """A path with its scales, and which hop the visitor is looking at.

    Attributes:
        hops: One text per hop, such as ``0:3`` or ``0:3*0.5 + 1:4*0.5``.
        scales: One number per hop.
        selected: The hop that the next edit changes, from 0.
    """

    hops: tuple[str, ...]
    scales: tuple[float, ...]
    selected: int = 0

    def __len__(self) -> int:
        return len(self.hops)

    def select(self, index: object) -> Route:
        """The same route, looking at another hop."""
        return replace(self, selected=self._index(index))

    def drop(self) -> Route:
        """Without the selected hop; raises `SpaceError` where it is the last one left."""
        if len(self) == 1:
            raise SpaceError("A path needs at least one hop; this is the last one.")
        at = self.selected
        return Route(self.hops[:at] + self.hops[at + 1 :], self.scales[:at] + self.scales[at + 1 :], min(at, len(self) - 2))

    def repeat(self) -> Route:
        """With the selected hop once more, right after itself; raises `SpaceError` where the path is too long for that."""
        at = self.selected + 1
        hop, scale = self.hops[at - 1], self.scales[at - 1]
        if sum(len(terms(other)) for other in (*self.hops, hop)) > MAX_HOPS:
            raise SpaceError(f"A path runs at most {MAX_HOPS} layers here.")
        return Route((*self.hops[:at], hop, *self.hops[at:]), (*self.scales[:at], scale, *self.scales[at:]), at)

    def move(self, by: int) -> Route:
        """With the selected hop earlier or later, as far as there is room."""
        there = max(0, min(len(self) - 1, self.selected + by))
        hops, scales = list(self.hops), list(self.scales)
        hops.insert(there, hops.pop(self.selected))
        scales.insert(there, scales.pop(self.selected))
        return Route(tuple(hops), tuple(scales), there)

    def scale(self, value: object) -> Route:
        """With another scale on the way into the selected hop."""
        checked = _scale(value, self.selected)
        at = self.selected
        return replace(self, scales=(*self.scales[:at], checked, *self.scales[at + 1 :]))

    def only_scales_hop(self, before: Route) -> bool:
        """Whether nothing but the scale of the selected hop is other than before."""
        return self.hops == before.hops and self.scale(0) == before.select(self.selected).scale(0)

    def _index(self, index: object) -> int:
        if isinstance(index, bool) or not isinstance(index, (int, float)) or index != index or not 0 <= index < len(self):
            raise SpaceError(f"There is no hop {index!r:.40}; the path has {len(self)}.")
        return int(index)


def route(hops: object, scales: object = None, *, holds: Sequence[str] = ()) -> Route:
    """Check a path that came through the API.

    Args:
        hops: A list of texts, one per hop, or a range of layers such as ``0:0-7``, or that so many times: ``0:3-4 x2``.
        scales: A list of numbers, one per hop; all 1 where there is none.
        holds: The hops of the published model. Layers that none of them runs are not in the checkpoint.

    Raises:
        SpaceError: Something is not as it must be; the message says what.
    """
    if isinstance(hops, str) or not isinstance(hops, Sequence) or not hops:
        raise SpaceError('The path must be a list of hops, such as ["0:0", "0:1", "1:1"].')
    hops = expanded(hops, MAX_HOPS)
    if len(hops) > MAX_HOPS:
        raise SpaceError(f"The path has {len(hops)} hops; here it may have {MAX_HOPS}.")
    parsed = [terms(hop) for hop in hops]
    if (runs := sum(map(len, parsed))) > MAX_HOPS:
        raise SpaceError(f"The path runs {runs:,} layers; here it may run {MAX_HOPS}.")
    there = {(source, layer) for hop in holds for source, layer, _ in terms(hop)}
    for source, layer in ((source, layer) for hop in parsed for source, layer, _ in hop):
        if there and (source, layer) not in there:
            raise SpaceError(f"Layer {source}:{layer} is not part of this model; an edit can only use layers that it has.")
    if scales is None or scales == []:
        return Route(tuple(hops), (1.0,) * len(hops))
    if isinstance(scales, str) or not isinstance(scales, Sequence) or len(scales) != len(hops):
        raise SpaceError(f"The scales must be a list of {len(hops)} numbers, one per hop.")
    return Route(tuple(hops), tuple(_scale(value, at) for at, value in enumerate(scales)))


def _scale(value: object, at: int) -> float:
    checked = as_float(value)
    if checked is None or abs(checked) > MAX_SCALE:
        raise SpaceError(f"The scale of hop {at + 1} must be a number between -{MAX_SCALE:g} and {MAX_SCALE:g}.")
    return checked


def name_of(labels: Sequence[str], source: int) -> str:
    """The name of a source."""
    return labels[source] if 0 <= source < len(labels) else f"source {source}"


def describe(hop: str, scale: float, labels: Sequence[str]) -> str:
    """A hop in words, such as ``maths, layer 3, scale 0.9``."""
    parts = []
    for source, layer, weight in terms(hop):
        parts.append(
            f"{name_of(labels, source)}, layer {layer}"
            + ("" if weight == 1 else f" (\N{MULTIPLICATION SIGN} {number(weight)})")
        )
    return " + ".join(parts) + f", scale {number(scale)}"


def difference(before: Route, after: Route) -> str:
    """What was changed, in one line."""
    if (before.hops, before.scales) == (after.hops, after.scales):
        return "The path is as published."
    words = []
    if before.hops != after.hops:
        other = sum((Counter(after.hops) - Counter(before.hops)).values())
        if len(after) != len(before):
            words.append(f"{counted(len(after), 'hop')} instead of {len(before)}")
        else:
            words.append(f"{counted(other, 'other hop')}" if other else "the order of the hops")
    else:
        changed = sum(a != b for a, b in zip(before.scales, after.scales, strict=True))
        words.append(f"{changed} scale{'s' if changed > 1 else ''}")
    return f"Changed: {', '.join(words)}."


class _Dumper(yaml.SafeDumper):
    """Quotes every hop, whatever the reader's idea of a number is."""


class _Hop(str):
    """Text that is written in quotes."""


_Dumper.add_representer(_Hop, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="'"))


def changed_recipe(recipe: Mapping[str, Any], config: Mapping[str, Any], changed: Route) -> str:
    """The recipe of the changed model, as YAML that `hf-evomerge merge` reads.

    Args:
        recipe: The recipe of the published model; where there is none, the sources of its configuration are used.
        config: The configuration of the published model.
        changed: The path as the visitor has made it.
    """
    flow = mapping(recipe.get("flow"))
    kept: dict[str, Any] = {key: value for key, value in recipe.items() if key not in ("flow", "built")}
    if not kept:
        sources = [mapping(item) for item in listing(config.get("sources"))]
        kept = {"sources": [{key: item[key] for key in ("model", "revision") if item.get(key)} for item in sources]}
    after: dict[str, Any] = {key: kept.pop(key) for key in ("dtype", "seed") if key in kept}
    kept["flow"] = {
        **flow,
        "path": [_Hop(hop) for hop in changed.hops],
        "scales": list(changed.scales),
        "scale_target": config.get("scale_target", "stream"),
        "embedding_source": config.get("embedding_source", 0),
    }
    text: str = yaml.dump(kept | after, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
