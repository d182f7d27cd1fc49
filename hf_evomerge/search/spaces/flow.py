"""Data flow space: which genome is which path through the layers of the sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...errors import SearchError
from ...recipes.recipe import FlowPart, MergePart, Recipe
from ...routing.gates import LEAST
from ..evaluation.gradients import GateSlopes
from ..file.config import SearchConfig
from ..file.paths import PrunePath
from ..file.stages import Step
from ..optimizers.ask_tell import Start, Vector

_WAITING = (
    0.05  # gates of slots that are off at the start of a gradient search: half of what puts them on
)


# Genome to recipe: a genome is decoded into hops (source, layer) with a scale each, by the genome
# type of `path.kind`: indicators of the paper (arXiv:2403.13187, section 3.2) or gates. With gates
# a slot adds g f(x) to the residual stream, and a slot with g = 0 is left out. The recipe names
# only slots that run, so many genomes are one recipe; its scores are shared.
#
# Recipe to genome is needed for starts alone: `along(slots, other)` gives gate 1 to the slots of a
# path and `other` to the rest. With a gradient `other` is slightly above 0, so that every slot has
# a slope; without one it is below 0, and one step of CMA-ES away from being on.
class FlowSpace:
    """Paths through the layers of the sources, and of the merged model where a merge came first."""

    def __init__(
        self,
        config: SearchConfig,
        layers: Sequence[int],
        merge: MergePart | None = None,
        *,
        step: Step | None = None,
    ) -> None:
        """Make the space.

        Args:
            config: The search.
            layers: Number of layers of each source, and of the merged model at the end where there
                is one.
            merge: The parameter-space part of every recipe of this space: the winner of the stage
                before.
            step: The step that will search it; the last of this space where absent.
        """
        self.config = config
        self.merge = merge
        self.step = step or config.steps(config.spaces[-1])[-1]
        kind = config.path
        merged = [len(config.sources)] if merge is not None else []
        order = kind.order or [*merged, *range(len(config.sources))]
        self.prunes = isinstance(kind, PrunePath)
        if isinstance(kind, PrunePath) and kind.layers >= (depth := layers[order[0]]):
            raise SearchError(
                f"path.layers: the model has {depth} layers; leave out fewer than these "
                f"(found {kind.layers})"
            )
        self.genome = kind.genome(order, [layers[source] for source in order])
        self.most_hops = self.genome.max_hops
        if self.prunes and self.step.by == "sweep":  # it starts from the full depth
            self.genome = replace(self.genome, max_hops=layers[order[0]])

    def start(self) -> Start:
        """Return where a search begins; one over gates at the best of the sources as they are and
        of their splices."""
        gates = self.config.path.gated
        gradient = self.step.by == "gradient"
        layout = self.genome.layout
        sigma = self.step.sigma or (0.2 if gates and not gradient else 0.1)
        lower, upper = self.genome.bounds()
        if not gates:
            return Start(self.genome.start(sigma), sigma, lower, upper)
        other = _WAITING if gradient else -0.5 * sigma
        even = [np.full(len(layout), 1 / len(layout.order))] if layout.side_by_side else []
        splices = self.genome.splices()
        candidates = (*even, *(self.genome.along(slots, other) for slots in splices))
        names = (*["even gates"] * len(even), *map(self._name, splices))
        mean = (
            self.genome.along(self.genome.first_pass, other)
            if gradient
            else self.genome.start(sigma)
        )
        lower = np.zeros(mean.size) if gradient else lower
        moves = self._without_one if self.prunes else None
        return Start(mean, sigma, lower, upper, candidates, names, prunable=True, moves=moves)

    def _name(self, slots: Sequence[int]) -> str:
        names = [*(f"{name}'s layers" for name in self.config.source_names), "the merged model"]
        parts = list(dict.fromkeys(names[self.genome.layout.slots[slot][0]] for slot in slots))
        return parts[0] if len(parts) == 1 else f"splice of {' and '.join(parts)}"

    def _without_one(self, genome: Vector) -> list[Vector]:
        """Leave out each layer of a path in turn; none where enough are left out already."""
        on = np.flatnonzero(genome >= LEAST)
        if on.size <= self.most_hops:
            return []
        return [np.where(np.arange(genome.size) == slot, 0.0, genome) for slot in on]

    def price(self, active: NDArray[np.bool_]) -> float:
        """A forward pass over the slots in play, and a backward pass to activations alone."""
        # In units of one pass through the model: the active slots forward, and as much back.
        # Weights need no gradient, which saves the third pass of `ParameterSpace.price`.
        return 2.0 * float(active.sum()) / self.genome.layout.layers[0]

    def slopes(self, genome: Vector, active: NDArray[np.bool_]) -> GateSlopes:
        """Request the gates' gradient."""
        gates = self.genome.gates(genome)
        layout = self.genome.layout
        return GateSlopes(
            tuple(layout.slots), tuple(gates.tolist()), tuple(active.tolist()), tuple(layout.hops)
        )

    def decode(self, genome: Vector) -> Recipe:
        """The recipe of a genome."""
        path = self.genome.decode(genome)
        flow = FlowPart(
            path=path.as_text(),
            scales=None if all(scale == 1 for scale in path.scales) else path.scales,
            scale_target=getattr(self.config.path, "scale_target", "stream"),
            embedding_source=self.genome.layout.order[0],
        )
        return self.config.recipe(merge=self.merge, flow=flow)

    def notes(self) -> list[str]:
        """Nothing: every number of the space matters."""
        return []
