"""The data flow space: which genome is which path (arXiv:2403.13187).

The layers of all sources are laid out in order and the whole is repeated r times. A genome has one
indicator per slot of that layout, on the path where it is positive, and numbers from which the
scale of each hop follows. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import PathError
from ..recipes.layer_path import LayerPath
from .gates import LEAST, gate_path

Initialisation = Literal["near_identity", "paper"]
ScaleEncoding = Literal["none", "slot", "matrix", "network", "gate"]
Vector = NDArray[np.float64]

NETWORK_WIDTH = 8
CUTS = 7


@dataclass(frozen=True)
class Layout:
    """The slots that a path is chosen from.

    Attributes:
        order: The sources in the order they are laid out; the first is the paper's A, whose first
            and last layer are always the ends of the path.
        layers: The number of layers of each source in `order`.
        repetitions: How often the whole is repeated (the paper's r).
        side_by_side: Whether the layers of one depth are the terms of one hop; the sources then
            have as many layers.
    """

    order: tuple[int, ...]
    layers: tuple[int, ...]
    repetitions: int
    side_by_side: bool = False

    def __post_init__(self) -> None:
        if self.side_by_side and len(set(self.layers)) > 1:
            counts = " and ".join(map(str, self.layers))
            raise PathError(
                f"path.terms: the sources have {counts} layers; hops of several terms need "
                "as many in each"
            )

    @property
    def columns(self) -> list[tuple[int, int]]:
        """The (source, layer) pairs of one repetition: the paper's M layers."""
        if self.side_by_side:
            return [(source, layer) for layer in range(self.layers[0]) for source in self.order]
        return [
            (source, layer)
            for source, count in zip(self.order, self.layers, strict=True)
            for layer in range(count)
        ]

    @property
    def slots(self) -> list[tuple[int, int]]:
        """The (source, layer) pair of each of the T = r * M slots."""
        return self.columns * self.repetitions

    @property
    def hops(self) -> list[int]:
        """The hop that each slot belongs to."""
        terms = len(self.order) if self.side_by_side else 1
        return [slot // terms for slot in range(len(self))]

    def __len__(self) -> int:
        return self.repetitions * sum(self.layers)


@dataclass(frozen=True)
class FlowGenome:
    """Decodes a vector into a path with scales.

    Attributes:
        layout: The slots.
        encoding: Where scales come from: ``none`` (all 1), ``slot`` (one number per slot),
            ``matrix`` (the paper's W_ij: one per ordered pair of layers), ``network`` (the paper's
            pi_theta(i, j, t): a small net of which theta is evolved) or ``gate`` (one number per
            slot in place of indicator and scale; see `gate_path`).
        scale_bounds: The least and the greatest scale; 1 must lie between them. Gates do not look
            at it.
        max_hops: The longest path. Of a longer one the hops with the smallest indicators are left
            out.
        initialisation: ``paper`` starts every slot at 0 but the first pass over A at +2 sigma, so
            half of all other slots are on; ``near_identity`` starts the other slots at -2 sigma, so
            that a search begins near A itself. Gates start at 1, and in other slots half a sigma
            below 0.
    """

    layout: Layout
    encoding: ScaleEncoding = "slot"
    scale_bounds: tuple[float, float] = (0.4, 1.5)
    max_hops: int = 128
    initialisation: Initialisation = "near_identity"

    @property
    def scale_count(self) -> int:
        """Number of the genome's elements that encode the scales."""
        columns = len(self.layout.columns)
        # three inputs, a bias and an output weight per unit; the output's bias
        network = NETWORK_WIDTH * 5 + 1
        return {
            "none": 0,
            "gate": 0,
            "slot": len(self.layout),
            "matrix": columns * columns,
            "network": network,
        }[self.encoding]

    @property
    def dimension(self) -> int:
        """Length of the genome: indicators, then scales."""
        return len(self.layout) + self.scale_count

    def start(self, sigma: float) -> Vector:
        """The mean that the search starts from, for a step size of `sigma`."""
        if self.encoding == "gate":
            return self.along(self.first_pass, -0.5 * sigma)
        indicators = np.full(
            len(self.layout), 0.0 if self.initialisation == "paper" else -2 * sigma
        )
        indicators[: self.layout.layers[0]] = 2 * sigma
        scales = np.zeros(self.scale_count)
        if (
            self.encoding == "network"
        ):  # hidden units that differ from each other, an output of 0: every scale starts at 1
            scales[: NETWORK_WIDTH * 4] = np.random.default_rng(0).standard_normal(
                NETWORK_WIDTH * 4
            )
        return np.concatenate([indicators, scales])

    @property
    def first_pass(self) -> list[int]:
        """The slots of A as it is."""
        return [
            slot
            for slot, (source, _) in enumerate(self.layout.columns)
            if source == self.layout.order[0]
        ]

    def along(self, slots: Iterable[int], other: float) -> Vector:
        """The gates of a path: 1 in its slots, `other` in all others."""
        gates = np.full(len(self.layout), other)
        gates[list(slots)] = 1.0
        return gates

    def splices(self) -> list[list[int]]:
        """Slots of the plainest paths: each source as it is, then a front of one with the back of
        another.

        Sources are cut at `CUTS` places at most, at equal distances. Of a source with more layers
        than a path may have, one run is left out, at each of these places.
        """
        runs = dict(zip(self.layout.order, self.layout.layers, strict=True))
        found = []
        for source, count in runs.items():
            found.append([(source, layer) for layer in range(count)])
        for source, count in runs.items():
            extra = count - self.max_hops
            places = min(CUTS, self.max_hops - 1)
            for begin in (
                (round(cut / (places + 1) * self.max_hops) for cut in range(1, places + 1))
                if extra > 0
                else ()
            ):
                found.append(
                    [
                        (source, layer)
                        for layer in range(count)
                        if not begin <= layer < begin + extra
                    ]
                )
        for first, second in permutations(runs, 2):
            places = min(CUTS, runs[first] - 1, runs[second] - 1)
            for cut in range(1, places + 1):
                front, back = (
                    round(cut / (places + 1) * runs[source]) for source in (first, second)
                )
                found.append(
                    [(first, i) for i in range(front)]
                    + [(second, i) for i in range(back, runs[second])]
                )
        placed = (self._placed(layers) for layers in found)
        return [slots for slots in placed if slots is not None]

    def _placed(self, layers: Sequence[tuple[int, int]]) -> list[int] | None:
        """The first slots that hold these layers in their order; None where the layout has no room
        for them."""
        slots: list[int] = []
        for layer in layers:
            begin = slots[-1] + 1 if slots else 0
            if layer not in self.layout.slots[begin:]:
                return None
            slots.append(self.layout.slots.index(layer, begin))
        return slots if len(slots) <= self.max_hops else None

    def gates(self, genome: Vector) -> Vector:
        """The gates of a genome: 0 where a slot is off; the strongest slot is on, with the least
        gate if need be."""
        gates = np.where(genome >= LEAST, genome, 0.0)
        strongest = np.argsort(-gates, kind="stable")[: self.max_hops]
        kept = np.zeros(gates.size)
        kept[strongest] = gates[strongest]
        if not kept.any():
            kept[int(np.argmax(genome))] = LEAST
        return kept

    def bounds(self) -> tuple[Vector, Vector]:
        """Lower and upper bounds of the genome; indicators and network weights are unbounded."""
        lower = np.full(self.dimension, -np.inf)
        upper = np.full(self.dimension, np.inf)
        if self.encoding in ("slot", "matrix"):
            lower[len(self.layout) :], upper[len(self.layout) :] = (
                bound - 1 for bound in self.scale_bounds
            )
        return lower, upper

    def decode(self, genome: Sequence[float] | Vector) -> LayerPath:
        """The path of a genome.

        Without gates, the first and the last layer of A are its ends: the first slot is always on,
        and where the last slot that is on is not the last layer of A, that layer is appended, with
        the scale of its slot in the last repetition.

        Raises:
            PathError: The genome has the wrong length or holds NaN.
        """
        vector = np.asarray(genome, dtype=np.float64)
        if vector.shape != (self.dimension,) or np.isnan(vector).any():
            raise PathError(
                f"genome: expected {self.dimension} numbers, got shape {vector.shape}, NaN: "
                f"{np.isnan(vector).any()}"
            )
        if self.encoding == "gate":
            return gate_path(self.layout.slots, self.gates(vector).tolist(), self.layout.hops)
        on = self._slots_on(vector[: len(self.layout)])
        layers = [self.layout.slots[slot] for slot in on]
        return LayerPath.of(layers, self._scales(on, vector[len(self.layout) :]))

    def _slots_on(self, indicators: Vector) -> list[int]:
        last_of_a = (self.layout.order[0], self.layout.layers[0] - 1)
        # arXiv:2403.13187, section on data flow space: slot t of T = M r is on the path where I_t >
        # 0, in the order of the slots; A's first and last layer are the ends.
        on = [0, *(int(slot) for slot in np.flatnonzero(indicators > 0) if slot > 0)]
        ends_at_a = self.layout.slots[on[-1]] == last_of_a
        # the slot of A's last layer in the last repetition
        final = (self.layout.repetitions - 1) * len(self.layout.columns) + last_of_a[1]
        ends = on[-1:] if ends_at_a else [final]
        middle = on[1:-1] if ends_at_a else on[1:]
        if len(self.layout) == 1 or (
            ends_at_a and len(on) == 1
        ):  # A has a single layer: it is both ends
            return on
        room = max(self.max_hops - 2, 0)
        if len(middle) > room:
            strongest = np.argsort(-indicators[middle], kind="stable")[:room]
            middle = [middle[position] for position in sorted(strongest)]
        return [0, *middle, *ends]

    def _scales(self, on: list[int], numbers: Vector) -> list[float]:
        """The scale of each hop. A hop's predecessor is the hop before it; the first hop has none
        and, by W_ij, scale 1."""
        # W_ij belongs to an ordered pair of layers of one repetition, so slots count modulo M. The
        # genome has w = W - 1: an optimiser that starts at 0 then starts with every scale at 1.
        width = len(self.layout.columns)
        if self.encoding == "none":
            return [1.0] * len(on)
        if self.encoding == "slot":
            return [float(1 + numbers[slot]) for slot in on]
        pairs = [(before % width, now % width, now) for before, now in pairwise(on)]
        if self.encoding == "matrix":
            return [1.0, *(float(1 + numbers[i * width + j]) for i, j, _ in pairs)]
        return [
            1.0,
            *(
                self._network(numbers, i / width, j / width, t / len(self.layout))
                for i, j, t in pairs
            ),
        ]

    def _network(self, theta: Vector, i: float, j: float, t: float) -> float:
        """pi_theta(i, j, t) with one hidden layer; an output of 0 is scale 1, and the bounds are
        never reached."""
        # With o the net's output and sigma the logistic function, s = low + (high - low) sigma(o +
        # c). c = log((1 - low) / (high - 1)) gives sigma(c) = (1 - low) / (high - low), so o = 0 is
        # s = 1. sigma is written as (1 + tanh(x / 2)) / 2, which cannot overflow.
        hidden = theta[: NETWORK_WIDTH * 4].reshape(NETWORK_WIDTH, 4)
        rest = theta[NETWORK_WIDTH * 4 :]
        output = float(rest[:-1] @ np.tanh(hidden @ np.array([i, j, t, 1.0])) + rest[-1])
        low, high = self.scale_bounds
        centre = np.log((1 - low) / (high - 1))  # the logit of scale 1 between the bounds
        return float(
            low + (high - low) * (1 + np.tanh((output + centre) / 2)) / 2
        )  # the logistic function, without overflow
