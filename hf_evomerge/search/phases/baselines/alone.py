"""Baseline: the same search over each source alone. It says whether the result needs them all."""

from __future__ import annotations

from ...file.config import SearchConfig
from ...file.stages import Stage
from ...results.table import Against
from ..phase import Entry, Phase, PhasePlan, Planner, SearchRun
from ..stages import spent
from ..winner import best_of


# Another parent in a merge is worth what the merge has more than the best of the parents can have
# alone. So each gets all that the search had: the same stages, optimizer, numbers per source and
# budget (`Control` in ``file/stages.py``), over a space that has this source only. Its stages are
# run by `StagePhase`, like any other; here their winners get their rows.
class Alone(Phase):
    """Rows of the searches over one source, the best on the validation split first."""

    name = "alone"
    title = "alone"

    @classmethod
    def wanted(cls, config: SearchConfig) -> list[Phase]:
        """Wanted where ``compare.baselines`` names ``alone``."""
        return [cls()] if "alone" in config.compare.baselines else []

    def plan(self, planner: Planner) -> PhasePlan | None:
        """Count the rows; the stages are priced where they run."""
        planner.rows += len(planner.config.searched_sources)
        return None

    def run(self, run: SearchRun) -> None:
        """Add the row of each search that ended."""
        ended = dict[str, Stage]()
        for source in run.config.searched_sources:
            stages = [stage for stage in run.main_stages if stage.source == source]
            if stages:
                key = best_of(run, stages)
                ended[key] = next(each for each in stages if run.winners[each.name] == key)
        if not ended:
            return
        best = best_of(run, list(ended.values()))
        names = run.config.source_names
        for key in sorted(ended, key=lambda key: key != best):
            evaluations, seconds = spent(run, ended[key])
            name = names[ended[key].source or 0]
            run.entries.append(
                Entry(
                    "alone",
                    f"{name} alone",
                    key,
                    run.study.recipe(key),
                    evaluations=evaluations,
                    seconds=seconds,
                    against=against(name, run.config.space) if key == best else None,
                    optional=True,
                )
            )


def against(source: str, space: str) -> Against:
    """Sentences about the best of the sources, alone, in a search of a space."""
    kept = f"{source}, rescaled" if space == "ps" else f"a path through {source} alone"
    return Against(
        f"{source} alone",
        worse=f"keep {kept}",
        level=f"a single source does as well: keep {kept}",
        keep=f"keep {kept}",
    )
