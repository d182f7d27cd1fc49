"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import EvoMergeError

if TYPE_CHECKING:
    from .search.loop import Result
    from .search.run import Plan

app = typer.Typer(
    name="hf-evomerge",
    help="Evolve a merge of existing language models, and load the result with from_pretrained.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

Out = Annotated[Path, typer.Option("--out", "-o", help="The folder to write.", show_default=False)]
Workers = Annotated[int, typer.Option(min=1, help="Processes that evaluate side by side; any number gives the same trials.")]
NoModel = Annotated[bool, typer.Option("--no-model", help="Leave the recipe, but do not build the model.")]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """A user's error ends the program with one line and status 1."""
    try:
        yield
    except (EvoMergeError, OSError, sqlite3.Error) as error:  # not only ours: a folder that cannot be written, a full disk
        typer.secho(f"error: {' '.join(str(error).split())}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        typer.secho("interrupted; whatever was finished is kept", err=True)
        raise typer.Exit(130) from interrupt


@app.command()
def search(
    file: Annotated[Path, typer.Argument(help="The search file (YAML); see docs/search.md.", show_default=False)],
    out: Out,
    workers: Workers = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, time one evaluation, and stop.")] = False,
    no_model: NoModel = False,
) -> None:
    """Evolve a merge, and leave the winner's recipe, the built model and pictures.

    Run again on the same folder, it goes on where it was stopped.

    **Examples**

    - `hf-evomerge search search.yaml --out my-search --workers 2`

    - `hf-evomerge search search.yaml --out my-search --dry-run`
    """
    with _one_line_errors():
        from .search.config import SearchConfig

        _quiet()
        config = SearchConfig.load(str(file))
        if dry_run:
            from .search.run import plan_search

            _print_plan(plan_search(config), workers)
            return
        from .search.run import run_search

        with _live_table() as table:
            result = run_search(config, out, workers=workers, report=table, build=not no_model)
        _print_result(result, out, built=not no_model)


@app.command()
def resume(
    study: Annotated[Path, typer.Argument(help="The folder of the search.", show_default=False)],
    workers: Workers = 1,
    no_model: NoModel = False,
) -> None:
    """Go on with a search that was stopped, to the same trials as if it never had been.

    **Example**

    - `hf-evomerge resume my-search --workers 2`
    """
    with _one_line_errors():
        from .search.run import resume_search

        _quiet()
        with _live_table() as table:
            result = resume_search(study, workers=workers, report=table, build=not no_model)
        _print_result(result, study, built=not no_model)


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(help="The recipe file (YAML); see docs/recipes.md.", show_default=False)],
    out: Out,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe and sources, and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that exists.")] = False,
) -> None:
    """Build the model of a recipe.

    **Examples**

    - `hf-evomerge merge recipe.yaml --out merged`

    - `hf-evomerge merge recipe.yaml --out merged --dry-run`
    """
    with _one_line_errors():
        from .build import build_model, check_recipe
        from .recipe import Recipe

        _quiet()
        parsed = Recipe.load(recipe)
        if dry_run:
            typer.echo(check_recipe(parsed))
            return
        typer.echo(f"built {build_model(parsed, out, overwrite=overwrite, progress=sys.stderr.isatty())}")


@app.command()
def fold(
    model: Annotated[str, typer.Argument(help="A merged model: a folder, or a repository on the Hub.", show_default=False)],
    out: Out,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16, in place of the model's own.")] = None,
) -> None:
    """Write a merged model as a plain one of the source architecture, for vLLM, llama.cpp and the like.

    Works where every hop of the path is one layer. Layers that run twice are written twice; the scales go into the weights.

    **Example**

    - `hf-evomerge fold my-search/model --out my-search/plain --dtype bfloat16`
    """
    with _one_line_errors():
        from .fold import fold as fold_model

        _quiet()
        typer.echo(f"wrote {fold_model(model, out, dtype=dtype)}")


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, or a repository on the Hub.", show_default=False)],
    file: Annotated[Path, typer.Option("--search", help="Take task and data from this search file.", show_default=False)],
    split: Annotated[str, typer.Option(help="Which of its splits: search, validation or test.")] = "test",
    show: Annotated[int, typer.Option(min=0, help="Print this many problems with the model's answers.")] = 0,
) -> None:
    """Score one model on the task of a search.

    **Example**

    - `hf-evomerge eval my-search/model --search search.yaml --split test --show 3`
    """
    with _one_line_errors():
        from .search.config import SearchConfig
        from .search.run import evaluate_model

        _quiet()
        report = evaluate_model(model, SearchConfig.load(str(file)), split=split, show=show)
        typer.echo(report)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="The folder of a search or of a built model.", show_default=False)],
    best: Annotated[int, typer.Option(min=1, help="How many of the best trials to list.")] = 5,
) -> None:
    """Show what a search has found so far, or which path or merge a model is.

    **Examples**

    - `hf-evomerge show my-search`

    - `hf-evomerge show my-search/model`
    """
    with _one_line_errors():
        from .search.show import describe_model, describe_study
        from .search.study import STUDY_FILE

        typer.echo(describe_study(folder, best) if (folder / STUDY_FILE).exists() else describe_model(folder))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A folder, or a repository on the Hub.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint is, from its config and headers alone: layers, parameters, vocabulary, path, sources.

    **Example**

    - `hf-evomerge inspect my-search/model`
    """
    with _one_line_errors():
        from .inspection import inspect_model

        _quiet()
        report = inspect_model(model)
        typer.echo(report.to_json() if as_json else report.to_text())


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="A folder, or a repository on the Hub.", show_default=False)],
    b: Annotated[str, typer.Argument(help="The one to compare it with.", show_default=False)],
    base: Annotated[str | None, typer.Option(help="Their common ancestor: compare the task vectors as well.")] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Show every tensor, not only layer groups.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what differs between two checkpoints: length, angle and signs, per layer group.

    **Example**

    - `hf-evomerge diff fine-tune-a fine-tune-b --base base`
    """
    with _one_line_errors():
        from .inspection import diff_models

        _quiet()
        report = diff_models(a, b, base=base, progress=sys.stderr.isatty())
        typer.echo(report.to_json(tensors=tensors) if as_json else report.to_text(tensors=tensors))


@app.command()
def methods() -> None:
    """List the merge methods and their parameters.

    **Example**

    - `hf-evomerge methods`
    """
    with _one_line_errors():
        from .merging.table import methods_table

        typer.echo(methods_table())


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("evomerge-demo"),
    workers: Annotated[int, typer.Option(min=1, help="Processes that evaluate side by side.")] = min(2, os.cpu_count() or 1),
    evaluations: Annotated[int | None, typer.Option(min=8, help="Trials per search, in place of the demo's own.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the searches.")] = 0,
) -> None:
    """Merge two tiny specialists that ship with the package, in a few minutes and without a network.

    **Example**

    - `hf-evomerge demo --out evomerge-demo`
    """
    with _one_line_errors():
        from .demo.quickstart import run_demo

        _quiet()
        run_demo(out, workers=workers, evaluations=evaluations, seed=seed)


def _quiet() -> None:
    """Keep the libraries' own bars and notes out of the live table."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@contextmanager
def _live_table() -> Iterator[Any]:
    from .search.display import LiveTable

    with LiveTable() as table:
        yield table


def _print_plan(plan: Plan, workers: int) -> None:
    for stage, count in plan.evaluations.items():
        size = f", {plan.dimensions[stage]} numbers to evolve" if stage in plan.dimensions else ""
        typer.echo(f"{stage}: {count} evaluations{size}")
    typer.echo(f"examples: {json.dumps(plan.examples)}")
    minutes = plan.minutes / workers
    whole = (
        f"{minutes:.0f} minutes"
        if 2 <= minutes < 120
        else f"{minutes * 60:.0f} seconds"
        if minutes < 2
        else f"{minutes / 60:.0f} hours"
    )
    typer.echo(f"one evaluation takes {plan.seconds_per_evaluation:.3g} s: about {whole} in all, with workers={workers}")


def _print_result(result: Result, out: Path, *, built: bool) -> None:
    from .search.show import results_table

    typer.echo(results_table(result))
    model = [f"model:  {out / 'model'}"] if built else []
    typer.echo("\n".join([f"recipe: {out / 'recipe.yaml'}", *model, f"plots:  {out / 'plots'}"]))


if __name__ == "__main__":
    app()
