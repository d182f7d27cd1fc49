"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import EvoMergeError

if TYPE_CHECKING:
    from .hub.push import PushOptions
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
RepoId = Annotated[str, typer.Argument(help="The repository on the Hub, user/name.", show_default=False)]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
WithSpace = Annotated[bool, typer.Option("--space", help="Make a Gradio Space for the model as well, of the same name.")]
Licence = Annotated[str | None, typer.Option("--license", help="A Hub identifier, in place of what follows from the parents'.")]
Published = Annotated[
    list[str] | None, typer.Option(help="FOLDER=user/name: a source folder that was published there; may be given again.")
]
Examples = Annotated[int, typer.Option(min=0, help="Publish this many test problems, for visitors to try.")]
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
    push_to: Annotated[str | None, typer.Option(help="Publish the winner as user/name when the search ends.")] = None,
    space: WithSpace = False,
    private: Private = False,
    licence: Licence = None,
) -> None:
    """Evolve a merge, and leave the winner's recipe, the built model and pictures.

    Run again on the same folder, it goes on where it was stopped.

    **Examples**

    - `hf-evomerge search search.yaml --out my-search --workers 2`

    - `hf-evomerge search search.yaml --out my-search --dry-run`

    - `hf-evomerge search search.yaml --out my-search --push-to me/my-merge --space`
    """
    with _one_line_errors():
        from .search.config import SearchConfig

        _quiet()
        config = SearchConfig.load(str(file))
        if push_to is None and (space or private or licence):
            raise EvoMergeError("--space, --private and --license say how to publish; name the repository with --push-to")
        if push_to is not None:
            from .hub.push import PushOptions, check_push

            if no_model:
                raise EvoMergeError("--push-to publishes the model, and --no-model builds none; leave one out")
            options = PushOptions(private=private, licence=licence, space=space)
            check_push(push_to, [*config.sources, *([config.base] if config.base is not None else [])], options)
        if dry_run:
            from .search.run import plan_search

            _print_plan(plan_search(config), workers)
            return
        from .search.run import run_search

        with _live_table() as table:
            result = run_search(config, out, workers=workers, report=table, build=not no_model)
        _print_result(result, out, built=not no_model)
        if push_to is not None:
            _push(out, push_to, options)


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
        from .folding import fold as fold_model

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
def push(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished search, or of a built model.", show_default=False)],
    repo_id: RepoId,
    private: Private = False,
    space: WithSpace = False,
    revision: Annotated[str | None, typer.Option(help="The branch to commit to; made where there is none.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    licence: Licence = None,
    language: Annotated[list[str] | None, typer.Option(help="ISO 639 code for the card; may be given again.")] = None,
    published: Published = None,
    examples: Examples = 0,
    no_card: Annotated[bool, typer.Option("--no-card", help="Leave the README on the Hub as it is.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be published, and stop.")] = False,
) -> None:
    """Publish a merged model with its recipe, the record of its search, pictures and a card, in one commit.

    Run again after a failure, it goes on where it ended. Nothing but what `--dry-run` lists leaves this machine.

    **Examples**

    - `hf-evomerge push my-search me/my-merge --private --dry-run`

    - `hf-evomerge push my-search me/my-merge --space --examples 5`
    """
    with _one_line_errors():
        from .hub.push import PushOptions, describe_push

        _quiet()
        options = PushOptions(
            private=private,
            revision=revision,
            create_pr=create_pr,
            licence=licence,
            languages=tuple(language or ()),
            published=_folders(published or []),
            examples=examples,
            card=not no_card,
            space=space,
        )
        if dry_run:
            typer.echo(describe_push(folder, repo_id, options))
            return
        _push(folder, repo_id, options)


@app.command()
def reproduce(
    repo_id: RepoId,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Keep the rebuilt model in this folder.")] = None,
) -> None:
    """Rebuild a published model from its recipe and its sources, and compare it with what is on the Hub, bit for bit.

    Ends with status 1 where they differ.

    **Example**

    - `hf-evomerge reproduce me/my-merge`
    """
    with _one_line_errors():
        from .hub.reproduce import reproduce as reproduce_model

        _quiet()
        result = reproduce_model(repo_id, revision=revision, out=out, progress=sys.stderr.isatty())
        typer.echo(result.to_text())
        if not result.same:
            raise typer.Exit(1)


@app.command()
def space(
    repo_id: Annotated[str | None, typer.Argument(help="The Space, user/name.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="The model on the Hub that it shows.")] = None,
    local: Annotated[str | None, typer.Option(help="Run the app here instead: a model's folder or repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="The model's branch or commit.")] = None,
    private: Private = False,
) -> None:
    """Make the Gradio Space of a published model, or run the same app on this machine.

    **Examples**

    - `hf-evomerge space me/my-merge --model me/my-merge`

    - `hf-evomerge space --local my-search`
    """
    with _one_line_errors():
        from .hub.space import push_space, run_space

        if local is not None:
            if repo_id is not None or model is not None:
                raise EvoMergeError("--local runs the app here; leave out the Space's name and --model")
            run_space(local, revision=revision)
        elif repo_id is None or model is None:
            raise EvoMergeError("give the Space's name and --model, or --local MODEL to run the app here")
        else:
            _quiet()
            typer.echo(f"published {push_space(repo_id, model, revision=revision, private=private).url}")


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


@app.command("hub")
def serve_hub(
    root: Annotated[Path, typer.Option(help="The folder to keep repositories in.")] = Path("evomerge-hub"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any that is free.")] = 8765,
    user: Annotated[str, typer.Option(help="Your name there, and so the namespace of your repositories.")] = "local",
) -> None:
    """Run a small Hub on this machine, to try push, download and Spaces without an account or a network.

    Prints the variables that point `huggingface_hub`, `transformers` and this program at it; see docs/local-hub.md.

    **Example**

    - `hf-evomerge hub --root my-hub`
    """
    with _one_line_errors():
        from .hub.local import LocalHub

        with LocalHub(root, port, user=user) as hub:
            typer.echo(hub.describe())
            with suppress(KeyboardInterrupt):
                hub.wait()
        typer.echo(f"stopped; the repositories are kept in {root}")


def _push(folder: Path, repo_id: str, options: PushOptions) -> None:
    from .hub.push import push_model

    pushed = push_model(folder, repo_id, options, progress=sys.stderr.isatty())
    for warning in pushed.warnings:
        typer.secho(f"warning: {warning}", err=True, fg=typer.colors.YELLOW)
    what = "published" if pushed.model.changed else "up to date:"
    typer.echo(f"{what} {pushed.model.url} at {pushed.model.sha[:12]}")
    if pushed.space is not None:
        typer.echo(f"Space: {pushed.space.url}")


def _folders(pairs: list[str]) -> dict[str, str]:
    """FOLDER=user/name, as a mapping."""
    for pair in pairs:
        folder, _, repo_id = pair.rpartition("=")
        if not folder or not repo_id:
            raise EvoMergeError(f"--published {pair}: write it as FOLDER=user/name")
    return {pair.rpartition("=")[0]: pair.rpartition("=")[2] for pair in pairs}


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
