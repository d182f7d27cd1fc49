"""Fine-tunes in low rank: each source of a search is extracted once as an adapter of the base, on which trials then run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import SourceError
from ...recipes.layer_groups import classify
from ..file.config import SearchConfig
from ..study.study import Study
from .sources import SearchSources

KEPT = "kept"  # the study's note of the energy that each adapter keeps, by the source's number


def check_low_rank(config: SearchConfig, sources: SearchSources) -> None:
    """Raise `SourceError` where a search cannot run in low rank; reads headers only."""
    from ...building.extracted import linear_layers
    from ...checkpoints.source import Source
    from ...merging.joined import why_merged

    if config.space != "ps":
        raise _refused(f"goes with space: ps, as paths run through whole layers (found {config.space})")
    if config.compute.unmerged is not None or config.compute.quantization:
        raise _refused("goes with neither compute.unmerged nor compute.quantization, which are of sources that are adapters")
    if reason := why_merged([], sources.base, config.merge.method, config.merge.options):
        raise _refused(reason)
    if (base := sources.base) is None:
        raise _refused("fine-tunes are extracted as adapters of a base, and none is given; give base")
    for source in [*(sources[number] for number in config.merge_sources), base]:
        if not isinstance(source, Source) or source.entries or source.adapter is not None:
            raise _refused(f"{source} is an adapter already, or a part of a model, and no whole language model")
    if not all(isinstance(source, Source) for source in sources.merged(config.merge_part()).plan.sources):  # matched by token
        raise _refused("the sources' vocabularies differ, and adapters have that of the base")
    for name, (_, transposed) in linear_layers(base).items():
        if transposed or classify(name)[2] == "experts":
            raise _refused(f"{base}: {name} is no plain linear layer, and adapters of it are not run unmerged")


def extract_sources(config: SearchConfig, sources: SearchSources, folder: Path, study: Study | None = None) -> str:
    """Extract every merged source, unless the folder holds its adapter as it was written, and let trials run on them.

    Args:
        config: The search, checked.
        sources: Its sources, which learn of the adapters.
        folder: Where to write them, each under its source's number.
        study: Where it is noted how much they keep.

    Returns:
        How much they keep, for people.

    Raises:
        SourceError: A source has no linear weight that differs from the base's.
    """
    from ...building.extracted import extract_adapter
    from ...building.record import changed_since, read_build_record

    base, rank = config.base, config.compute.search_rank
    assert base is not None  # the search has been checked
    kept: dict[str, float] = (study.meta(KEPT) if study is not None else None) or {}
    for number in config.merge_sources:
        out = folder / str(number)
        written = read_build_record(out) if str(number) in kept else None
        if written is not None and not changed_since(out, written):
            continue
        more: dict[str, Any] = {"overwrite": out.exists(), "progress": False, "trust_remote_code": sources.trust_remote_code}
        adapter = extract_adapter(config.sources[number], base, out, rank=rank or 1, **more)
        kept[str(number)] = adapter.kept
        if study is not None:
            study.set_meta(KEPT, kept)
    sources.adapters = folder
    return kept_text(config, kept)


def kept_text(config: SearchConfig, kept: dict[str, float]) -> str:
    """Name the energy that each source's adapter keeps."""
    shares = ", ".join(f"{share:.1%} of {config.source_names[int(number)]}'s" for number, share in kept.items())
    return f"rank {config.compute.search_rank} keeps {shares} change of linear weights (energy); all other tensors count whole"


def _refused(reason: str) -> SourceError:
    return SourceError(f"compute.search_rank: {reason}; leave it out")
