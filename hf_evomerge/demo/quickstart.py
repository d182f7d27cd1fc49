"""The demo: evolves merges of the specialists that ship with the package, and shows that the result
is real.

Three searches, their winners built, loaded again in a fresh process in which this package cannot be
imported, and asked held-out problems; where asked, the winner of DFS published, rebuilt and loaded
from the Hub.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import EvoMergeError
from ..fitness.comparison import column
from ..fitness.text.numbers import last_number
from ..lines import say
from ..search.evaluation.evaluator import Evaluator, Target
from ..search.file.config import SearchConfig
from ..search.reports.display import LiveTable
from ..search.results.result import Result
from ..search.results.table import Row, rows_table
from ..search.results.verdict import verdict
from ..search.run import run_search
from . import EVALUATIONS

SPECIALISTS = Path(__file__).parent / "specialists"
# what `benchmarks/specialists/language.py` makes up for each split
PROBLEMS = Path(__file__).parent / "problems"
RELOAD = Path(__file__).parent / "reload.py"
SIZES = {"search": 128, "validation": 256, "test": 500}
ABOUT = (
    "Solves word problems in Japanese and answers in Japanese: with numbers to 10, in a toy "
    "language of 170 words."
)
SPACES = ("ps", "dfs", "hybrid")
BASELINES = {
    "ps": ["average", "prompt", "alone"],
    "dfs": ["average", "alone"],
    "hybrid": ["average"],
}
PUBLISHED = "dfs"  # the search whose winner has a path to show


def run_demo(
    out: str | Path,
    *,
    workers: int = 1,
    evaluations: int = EVALUATIONS,
    seed: int = 0,
    family: str | Path = SPECIALISTS,
    sizes: dict[str, int] | None = None,
    push_to: str | None = None,
) -> list[Row]:
    """Run the demo.

    Args:
        out: The folder to write; searches that are finished there already are not run again.
        workers: Processes that evaluate side by side; with two or more, the searches run beside
            each other.
        evaluations: Budget of each search, in scores of all search problems. PS+DFS has as much as
            PS alone.
        seed: Seed of the searches. The problems are the same for all.
        family: A folder with the models ``base``, ``japanese`` and ``maths``.
        sizes: Problems per split.
        push_to: ``user/name``: publish the DFS winner there, on the Hub, with its Space and the
            specialists beside it.

    Returns:
        The rows of the table that was printed.

    Raises:
        EvoMergeError: A search could not run, or a winner answers otherwise once it is loaded
            again.
    """
    if push_to is not None:
        from ..checkpoints.client import default_api
        from ..hub.target import check_login

        check_login(default_api(), push_to)
    out = Path(out)
    data = write_problems(out / "data", sizes or SIZES)
    configs = {space: demo_config(space, data, evaluations, seed, Path(family)) for space in SPACES}
    beside = {
        space: get_context("spawn").Process(
            target=_search_quietly, args=(configs[space], out / space), daemon=True
        )
        for space in SPACES[1:]
        if workers > 1
    }
    for process in beside.values():
        process.start()
    results: dict[str, Result] = {}
    for space, config in configs.items():
        if space in beside:
            beside[space].join()
        say(f"\n{space} search: {out / space}", err=True, bold=True)
        with LiveTable(config=config) as table:
            results[space] = run_search(config, out / space, workers=workers, callbacks=[table])
    rows = comparison(results)
    say(
        "\n"
        + rows_table(rows, f"{results['ps'].examples} held-out problems; ± is one standard error")
        + "\n"
    )
    say("\n".join(f"- {line}" for line in findings(rows, results)))
    say(
        check_reload({str(out / space / "model"): results[space] for space in SPACES}, data["test"])
    )
    say("\n" + one_problem(config, rows, results) + "\n")
    if push_to is not None:
        from .publish import publish_demo

        say(publish_demo(out / PUBLISHED, Path(family), push_to, space=True, card=out / "card.md"))
        say(check_reload({push_to: results[PUBLISHED]}, data["test"]))
    said = (
        f"pictures: {out}/*/plots\nask it, change it: hf-evomerge space "
        f"{shlex.quote(str(out / PUBLISHED))}"
    )
    say(f"{said}\nsearch by hand: hf-evomerge init --demo")
    return rows


# The steps of a search by gradient wait for each other, so a second worker has nothing to do. The
# searches of the demo do not: the first is shown while the others run in processes of their own.
# What such a process has finished, or began and could not finish, is then taken up here like any
# study.
def _search_quietly(config: SearchConfig, out: Path) -> None:
    """Run a search without a word."""
    logging.disable()
    run_search(config, out)


def write_problems(folder: Path, sizes: dict[str, int]) -> dict[str, Path]:
    """Write the first problems of each split as JSON lines, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: folder / f"{split}.jsonl" for split in sizes}
    for split, file in files.items():
        lines = (PROBLEMS / file.name).read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[: sizes[split]]), encoding="utf-8")
    return files


def demo_config(
    space: str, data: dict[str, Path], evaluations: int, seed: int, family: Path = SPECIALISTS
) -> SearchConfig:
    """The search of one space, by gradient. A hybrid search spends half of its evaluations on PS
    and the rest on DFS."""
    half = evaluations // 2
    shares = {"ps": half, "dfs": evaluations - half} if space == "hybrid" else {None: evaluations}
    settings = {
        "about": ABOUT,
        "space": space,
        "sources": [{"model": str(family / name)} for name in ("japanese", "maths")],
        "base": {"model": str(family / "base")},
        # A is the merged model, or the maths specialist
        "path": {
            "kind": "gates",
            "order": [2, 1, 0] if space == "hybrid" else [1, 0],
            "max_hops": 24,
        },
        "optimize": [
            {"by": "gradient", "evaluations": share, "space": name}
            for name, share in shares.items()
        ],
        "fitness": {"task": "likelihood", "separator": " "},
        "data": {
            split: {"jsonl": str(file), "gloss_field": "gloss"} for split, file in data.items()
        },
        "compare": {"baselines": BASELINES[space]},
        "output": {"dtype": "float32"},
        "compute": {"seed": seed},
    }
    return SearchConfig.model_validate(settings)


def comparison(results: dict[str, Result]) -> list[Row]:
    """Make one table of all searches: the parents once, what is simpler than a search of both, then
    what each search ended with."""
    ps = results["ps"]
    rows = [row for row in ps.rows if row.stage not in ("ps", "alone")]
    rows += [*_alone(ps, ""), *_alone(results["dfs"], ", a path")]
    won = {}
    for space, result in results.items():
        won[space] = next(row for row in result.rows if row.winner)
    rows += [won["ps"], won["dfs"], replace(won["hybrid"], model="evolved PS+DFS")]
    return [replace(row, winner=False) for row in rows]


def _alone(result: Result, suffix: str) -> list[Row]:
    """Rows of the searches over one source, by its name."""
    rows = [row for row in result.rows if row.stage == "alone"]
    rows.sort(key=lambda row: row.model)
    return [replace(row, model=f"{row.model}{suffix}") for row in rows]


def findings(rows: list[Row], results: Mapping[str, Result]) -> list[str]:
    """Write one sentence about each evolved model of the table, whether PS and DFS need both
    sources, and one sentence about the stage that PS+DFS ended with."""
    evolved = rows[-len(SPACES) :]
    others = rows[: -len(SPACES)]
    lines = [verdict([*others, replace(row, winner=True)], "test")[0] for row in evolved]
    for space in ("ps", "dfs"):
        for said in results[space].verdict:
            if said.partition(":")[0].endswith((" needs both sources", " more than one source")):
                lines.append(said)
    hybrid = results["hybrid"]
    weights, path = (hybrid.row(stage).scores.accuracy for stage in ("ps", "dfs"))
    chosen = "weights" if hybrid.winner.flow is None else "path"
    return [
        *lines,
        f"PS+DFS ended with its {chosen}, which did better on the validation problems; of "
        "the test problems its weights solve "
        f"{weights:.3f} and its path {path:.3f}",
    ]


def check_reload(winners: Mapping[str, Result], test: Path) -> str:
    """Load winners in a fresh process without this package, generate their answers, and compare the
    accuracy.

    Args:
        winners: What the search says of its winner, by the winner's folder or its repository on the
            Hub.
        test: The problems.

    Returns:
        A line for each winner.
    """
    command = [sys.executable, str(RELOAD), str(test), *winners]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise EvoMergeError(
            f"{', '.join(winners)}: do not load in a fresh process: "
            f"{ran.stderr.strip().splitlines()[-1:]}"
        )
    lines = []
    for (model, result), line in zip(
        winners.items(), ran.stdout.splitlines()[-len(winners) :], strict=True
    ):
        report = json.loads(line)
        expected = next(row for row in result.rows if row.winner).scores.accuracy
        if expected is None or abs(report["accuracy"] - expected) > 1.5 / report["problems"]:
            raise EvoMergeError(
                f"{model}: answers {report['accuracy']} right after loading, {expected} before"
            )
        lines.append(
            f"{model} loads without this package as {report['class']} and writes "
            f"{report['accuracy']:.3f} right"
        )
    return "\n".join(lines)


def one_problem(config: SearchConfig, rows: list[Row], results: dict[str, Result]) -> str:
    """A held-out problem that the winners solve and the parents do not, with every model's
    answer."""
    evaluator = Evaluator(config)
    evolved = rows[-len(SPACES) :]
    others = rows[: -len(SPACES)]
    drama = 2 * sum(map(_right, evolved)) - sum(map(_right, others))
    chosen = int(np.argmax(drama))  # of equals the first
    example = evaluator.tasks.examples("test")[chosen]
    targets: list[Target] = [*config.parents.values(), *(results[space].winner for space in SPACES)]
    asked = [*(row for row in others if row.stage in ("base", "source")), *evolved]
    lines = [
        f"one problem: {example.prompt}",
        f"  {example.gloss}",
        f"  {'right answer':16} {example.answer}",
    ]
    for row, target in zip(asked, targets, strict=True):
        answer = evaluator.answer(target, example, 12)
        same = last_number(answer) == last_number(example.answer)
        mark = "wrong language" if same else "wrong number"
        if _right(row)[chosen]:
            mark = "right"
        lines.append(f"  {row.model:16} {answer} ({mark})")
    return "\n".join(lines)


def _right(row: Row) -> NDArray[np.int64]:
    """1 for each problem that a model solves, else 0."""
    return column(row.scores, "accuracy").astype(np.int64)
