"""The section ``path`` of a search file: kinds of data flow spaces, each with its own keys, and the
genomes of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from ...recipes.layer_path import MAX_HOPS
from ...recipes.recipe import ScaleTarget
from ...recipes.strict_yaml import Count, Number, StrictModel
from ...routing.layout import FlowGenome, Initialisation, Layout
from .sections import Numbers

_Repetitions = Annotated[Count, Field(le=64)]
_Hops = Annotated[Count, Field(ge=2, le=MAX_HOPS)]


class _Path(StrictModel):
    """Keys of every kind."""

    order: Numbers | None = None
    """The sources in the order their layers are laid out, as indices; the first is the paper's A.
    All, in order, by default. In a hybrid search the merged model has the number of sources as its
    index, and comes first by default."""

    @property
    def gated(self) -> bool:
        """True where genomes are gates: how much of what each layer adds is kept."""
        return isinstance(self, GatesPath | PrunePath)


class GatesPath(_Path):
    """Gate for each slot of the layout: 0 leaves the layer out. Alone among the kinds it goes with
    several models and has a gradient."""

    kind: Literal["gates"]
    """``gates``."""
    terms: Literal[1, "all"] = 1
    """Layers of a hop: 1, or ``all``: the layers of one depth of all sources that are laid out run
    side by side on the same stream, and their gates are the weights of their sum."""
    repetitions: _Repetitions | None = None
    """How often the layout is repeated (the paper's r); 2 where absent, and 1 with ``terms:
    all``."""
    max_hops: _Hops = 128
    """The longest path; of a longer one the hops with the smallest gates are left out."""

    def genome(self, order: Sequence[int], layers: Sequence[int]) -> FlowGenome:
        """Genomes over models of so many layers, in this order."""
        together = self.terms == "all" and len(order) > 1
        layout = Layout(
            tuple(order), tuple(layers), self.repetitions or (1 if together else 2), together
        )
        return FlowGenome(layout, "gate", max_hops=self.max_hops)


class PrunePath(_Path):
    """Gates of the layers of one model, of which some are left out."""

    kind: Literal["prune"]
    """``prune``."""
    layers: Count
    """How many layers are left out, at least."""

    def genome(self, order: Sequence[int], layers: Sequence[int]) -> FlowGenome:
        """Genomes over a model of so many layers."""
        return FlowGenome(
            Layout(tuple(order), tuple(layers), 1), "gate", max_hops=layers[0] - self.layers
        )


class PaperPath(_Path):
    """Indicators and scales as in arXiv:2403.13187: every path begins with the first and ends with
    the last layer of A."""

    kind: Literal["paper"]
    """``paper``."""
    scales: Literal["matrix", "slot", "network", "none"] = "matrix"
    """Encoding of the scales: ``matrix``, the paper's W_ij; ``slot``, one number per slot;
    ``network``; or ``none``."""
    scale_bounds: tuple[Number, Number] = (0.4, 1.5)
    """The least and the greatest scale."""
    scale_target: ScaleTarget = "stream"
    """What a scale multiplies: ``stream`` or ``mlp_delta``."""
    initialisation: Initialisation = "near_identity"
    """``near_identity``: start with the layers of A alone; ``paper``: with half of all other slots
    on as well."""
    repetitions: _Repetitions = 2
    """How often the layout is repeated (the paper's r)."""
    max_hops: _Hops = 128
    """The longest path; of a longer one the hops with the smallest indicators are left out."""

    @field_validator("scale_bounds")
    @classmethod
    def _one_inside(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < 1 < value[1]:
            raise ValueError(
                f"1 is not between {value[0]} and {value[1]}, and a search starts with all "
                "scales at 1"
            )
        return value

    def genome(self, order: Sequence[int], layers: Sequence[int]) -> FlowGenome:
        """Genomes over models of so many layers, in this order."""
        layout = Layout(tuple(order), tuple(layers), self.repetitions)
        return FlowGenome(
            layout, self.scales, self.scale_bounds, self.max_hops, self.initialisation
        )


_KINDS = {"gates": GatesPath, "prune": PrunePath, "paper": PaperPath}


def _kind(written: Any) -> str | None:
    """The class that a section names, so that only what is wrong with that one is said."""
    kind = written.get("kind") if isinstance(written, Mapping) else getattr(written, "kind", None)
    return _KINDS[kind].__name__ if isinstance(kind, str) and kind in _KINDS else None


AnyPath = Annotated[
    Annotated[GatesPath, Tag("GatesPath")]
    | Annotated[PrunePath, Tag("PrunePath")]
    | Annotated[PaperPath, Tag("PaperPath")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message=f"must be a mapping with kind: {', '.join(_KINDS)}",
    ),
]
