"""Baseline: the same search over each source alone. It says whether the result needs them all."""

from __future__ import annotations

from ...file.stages import Stage
from ...results.table import Against
from ..phase import Phase, PhasePlan, Planner, SearchRun
from ..stages import winner_row
from ..winner import best_of


# Another parent in a merge is worth what the merge has more than the best of the parents can have
# alone. So each gets all that the search had: the same stages, optimizer, numbers per source and
# budget (`Control` in ``file/stages.py``), over a space that has this source only. A search of
# several sources may begin at another one, which may be no more than the base; so this one may
# begin at the base. Its stages are run by `StagePhase`, like any other; here their winners get
# their rows.
class Alone(Phase):
    """Rows of the searches over one source, the best on the validation split first."""

    name = "alone"
    title = "alone"
    baseline = "alone"

    def plan(self, planner: Planner) -> PhasePlan | None:
        """Count the rows; the stages are priced where they run."""
        planner.rows += len(planner.config.searched_sources)
        return None

    def run(self, run: SearchRun) -> None:
        """Add the row of each search that ended."""
        ended = list[Stage]()
        for source in run.config.searched_sources:
            stages = [stage for stage in run.main_stages if stage.source == source]
            if stages:
                ended.append(best_of(run, stages))
        if not ended:
            return
        best = best_of(run, ended)
        names = run.config.source_names
        for stage in sorted(ended, key=lambda stage: stage is not best):
            name = names[stage.source or 0]
            said = against(name, run.config.space)
            run.rows.append(winner_row(run, stage, "alone", f"{name} alone", said, optional=True))


def against(source: str, space: str) -> Against:
    """Sentences about the best of the sources, alone, in a search of a space."""
    kept = f"{source} alone, rescaled"
    if space != "ps":
        kept = f"a path through {source} alone"
    how = "rescaled" if space == "ps" else "by a path"
    return Against(
        f"{source} alone, {how}",
        worse=f"the search got stuck below a part of its own space; take {kept}",
        level=f"a single source, {source} {how}, does as well: take {kept}",
        keep=f"take {kept}",
    )
