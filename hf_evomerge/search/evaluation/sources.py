"""The checkpoints of a search, opened: its sources and base, recipes as the build has them, and
whose tokenizer goes with what.

Reads headers and configs; loads no model.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ...errors import SourceError
from ...merging.registry import in_core
from ...recipes.recipe import MergePart, Recipe, SourceRef
from ..file.config import SearchConfig

if TYPE_CHECKING:
    from ...building.merged import Merged
    from ...checkpoints.checkpoint import Checkpoint, Parent

Target = Recipe | SourceRef


@dataclass(frozen=True)
class SourceSummary:
    """Facts about the sources that the spaces must know.

    Attributes:
        layers: Number of layers of each source.
        tensors: Names of the weights of the sources that are merged, and how many rows each has.
        unchanged: Per source that is merged the names of the tensors that equal the base's; empty
            where there is no base.
    """

    layers: Sequence[int]
    tensors: Mapping[str, int] = field(default_factory=dict)
    unchanged: Sequence[Container[str]] = ()


class SearchSources:
    """The sources and the base of a search, opened. A sequence of the sources.

    Args:
        config: The search.
        trust_remote_code: Whether Python files that come with the sources may be run.
        weights: Whether weights may be downloaded and read.

    Attributes:
        base: The opened base, where there is one.
        all: The sources, and the base after them.

    Raises:
        SourceError: A source cannot be read.
    """

    def __init__(
        self, config: SearchConfig, *, trust_remote_code: bool = False, weights: bool = True
    ) -> None:
        from ...checkpoints.component import as_parts

        self.config = config
        self.trust_remote_code = trust_remote_code
        self.weights = weights
        self._opened: dict[SourceRef, Parent] = {}
        self._checkpoints: dict[Hashable, Checkpoint] = {}
        self._merges: dict[Hashable, Merged] = {}
        self.all = as_parts([self.open(ref) for ref in config.refs])
        self._sources = self.all[: len(config.sources)]
        self.base = self.all[-1] if config.base is not None else None

    def __getitem__(self, number: int) -> Parent:
        return self._sources[number]

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[Parent]:
        return iter(self._sources)

    @property
    def layers(self) -> list[int]:
        """Number of layers of each source."""
        return [source.layer_count for source in self]

    @cached_property
    def summary(self) -> SourceSummary:
        """Facts about the sources that the spaces need; of a merge also where weights are the
        base's, if they may be read."""
        from ...checkpoints.unchanged import unchanged_tensors
        from ...merging.rows import row_count

        if self.config.space == "dfs":
            return SourceSummary(self.layers)
        plan = self.merged(self.config.merge.part()).plan
        merged = plan.sources
        tensors = {
            name: row_count(info.shape)
            for name, info in merged[0].tensors.items()
            if info.is_float and name not in plan.kept and ".rotary_emb.inv_freq" not in name
        }
        base = plan.base if self.weights else None
        unchanged = (
            [unchanged_tensors(source, base) for source in merged] if base is not None else []
        )
        return SourceSummary(self.layers, tensors, unchanged)

    def open(self, ref: SourceRef) -> Parent:
        """A source of the search, or another model. Raises `SourceError`."""
        from ...checkpoints.open import open_source

        if ref not in self._opened:
            self._opened[ref] = open_source(ref, trust_remote_code=self.trust_remote_code)
        return self._opened[ref]

    def checkpoint(self, recipe: Recipe) -> Checkpoint:
        """A recipe as the build has it, with all its checks; raises as `open_recipe` does."""
        from ...building.build import open_recipe

        return open_recipe(recipe, opened=self.open)

    def merged(self, part: MergePart) -> Merged:
        """A merge of this kind, whatever its numbers are, as the build has it."""
        from ...building.build import open_merge

        key = self.kind_of(part)
        if key not in self._merges:
            self._merges[key] = open_merge(self.config.recipe(merge=part), self.open)
        return self._merges[key]

    def kind_of(self, part: MergePart) -> tuple[Hashable, ...]:
        """Key of a kind of merges: they differ in numbers alone. The last item names the options
        that have some."""
        return (
            part.model_dump_json(exclude={"sources", "parameters", "options", "core_space"}),
            tuple(part.sources or range(len(self))),
            in_core(part),
            tuple(sorted(part.options)),
        )

    def runs_unmerged(self, part: MergePart) -> bool:
        """Decide whether such merges run as adapters on their base; raises `SourceError` where they
        should and cannot."""
        from ...merging.joined import why_merged

        compute = self.config.compute
        core = in_core(part)
        wanted = "compute.unmerged" if compute.unmerged else None
        only = {"merge.core_space": core, "compute.quantization": compute.quantization}
        wanted = next((key for key, given in only.items() if given), wanted)
        if compute.unmerged is False or self.config.space != "ps":  # paths run through whole layers
            if any(only.values()):
                raise SourceError(
                    f"{wanted}: goes with space: ps and adapters that run unmerged; leave it out"
                )
            return False
        refs = [self.config.sources[number] for number in part.sources or range(len(self))]
        if wanted is None and (self.base is None or any(ref.adapter is None for ref in refs)):
            return False
        plan = self.merged(part).plan
        reason = why_merged(
            plan.sources, plan.base, part.method, part.options, core=core, kept=plan.kept
        )
        if reason is not None and wanted:
            raise SourceError(f"{wanted}: {reason}; leave it out")
        return reason is None

    @cached_property
    def host(self) -> Parent | None:
        """The model that a merged part, or the layers of a path, are put into; None where whole
        models are."""
        dfs = self.config.space == "dfs"
        first = self[(self.config.path.order or [0])[0] if dfs else self.config.merge_sources[0]]
        return None if first.is_whole else first

    def tokenizer_owner(self, target: Target) -> tuple[Hashable, Checkpoint]:
        """The checkpoint whose tokenizer goes with a target, and what is the same for all that
        share it."""
        if isinstance(target, SourceRef):
            owner = self.open(target)
            if (
                self.host is not None
                and owner.config.model_type != self.host.whole.config.model_type
            ):
                owner = self.host.whole  # which it is put into
            return owner.folder, owner
        merge = target.merge and tuple(target.merge_sources)
        key: Hashable = ("tokenizer of", merge, target.flow and target.flow.embedding_source)
        if key not in self._checkpoints:
            self._checkpoints[key] = self.checkpoint(target)
        return key, self._checkpoints[key]
