"""The commands that build and look at models: merge, convert, fold, inspect, diff."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EvoMergeError
from ..lines import echo
from ..recipes.whole_file import write_whole
from .common import (
    LOGGER,
    MODELS,
    AsJson,
    Model,
    Out,
    Replace,
    Split,
    TrustRemoteCode,
    app,
    as_object,
    one_line_errors,
    quiet,
    without_torch,
)

if TYPE_CHECKING:
    from ..recipes.recipe import Recipe


def _print_methods(asked: bool) -> None:
    if asked:
        from ..merging.table import methods_table

        typer.echo(methods_table())
        raise typer.Exit


Methods = Annotated[
    bool,
    typer.Option(
        "--methods",
        help="List the merge methods and their parameters, and stop.",
        callback=_print_methods,
        is_eager=True,
    ),
]
_WHOLE = "Write the whole model, or an adapter; without either, an adapter where it is one."
Whole = Annotated[bool | None, typer.Option("--whole/--adapter", help=_WHOLE)]


@app.command(**MODELS)
def merge(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe, a mergekit file, or a study.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The new folder: merged, or STUDY/model.", show_default=False
        ),
    ] = None,
    pick: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of a study for several objectives: the front's point N.", metavar="N"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe and sources, and stop.")
    ] = False,
    overwrite: Replace = False,
    max_shard_size: Annotated[
        str, typer.Option(help="The largest size of a weights file.")
    ] = "4GB",
    methods: Methods = False,
    whole: Whole = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, max=1 << 20, help="The largest rank of the adapter; exact by default."),
    ] = None,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Build the model of a recipe, of a mergekit file, or of a study. A build that was stopped is
    resumed.

    LoRA adapters of one base give an adapter, where the method adds what they change.

    **Examples**

    - `hf-evomerge merge recipe.yaml --out merged`

    - `hf-evomerge merge mergekit.yml --out merged --dry-run`

    - `hf-evomerge merge my-front --pick 7`
    """
    with one_line_errors(again=True):
        from ..building.build import build_model, check_recipe
        from ..building.build_record import read_build_record
        from ..checkpoints.writer import check_target

        quiet(bars=True)
        chosen, place = _recipe_of(recipe, pick)
        chosen = chosen if rank is None else chosen.model_copy(update={"rank": rank})
        how: dict[str, Any] = {"whole": whole, "trust_remote_code": trust_remote_code}
        found: dict[str, Any] = {}
        if dry_run:
            check_target(folder := out or place, overwrite=overwrite)
            checked = check_recipe(chosen, **how)
            text = f"{checked}\n{checked.ledger}"
            found = {
                "summary": checked.summary,
                "warnings": checked.warnings,
                "tensors": str(checked.ledger),
            }
        else:
            how |= {"max_shard_size": max_shard_size}
            folder = build_model(chosen, out or place, overwrite=overwrite, **how)
            text = f"built {folder}"
            if as_json and (built := read_build_record(folder)) is not None:
                found = built.model_dump(exclude_none=True)
        if as_json:
            found = {"folder": str(folder), "built": not dry_run, "recipe": chosen.key, **found}
            text = as_object(found)
        echo(text)


def _recipe_of(given: Path, pick: int | None) -> tuple[Recipe, Path]:
    """The recipe to build, and the folder that it is built in by default."""
    if given.is_dir():
        from ..search.folder import found_recipe

        return found_recipe(given, pick)
    if pick is not None:
        raise EvoMergeError(
            f"--pick: {given} is no study; give the folder of one, or leave the option out"
        )
    from ..mergekit import load

    read = load(given)
    for line in read.notes:
        LOGGER.info(line)
    return read.recipe, Path("merged")


@app.command(**MODELS)
def convert(
    file: Annotated[Path, typer.Argument(help="A recipe, or a mergekit file.", show_default=False)],
    to: Annotated[str, typer.Option(help="What to write: recipe or mergekit.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write; without it, the text is printed."),
    ] = None,
    overwrite: Replace = False,
) -> None:
    """Write a mergekit file as a recipe, or a recipe as a mergekit file.

    **Examples**

    - `hf-evomerge convert mergekit.yml --to recipe --out recipe.yaml`

    - `hf-evomerge convert recipe.yaml --to mergekit`
    """
    with one_line_errors():
        from ..errors import RecipeError
        from ..mergekit import load, to_mergekit

        if to not in ("recipe", "mergekit"):
            raise RecipeError(f"--to: {to!r} is neither recipe nor mergekit")
        if out is not None and out.exists() and not overwrite:
            raise RecipeError(f"{out}: exists already; choose another name, or pass --overwrite")
        read = load(file)
        text, notes = to_mergekit(read.recipe) if to == "mergekit" else (read.recipe.to_yaml(), [])
        for line in [*read.notes, *notes]:
            LOGGER.info(line)
        if out is None:
            typer.echo(text, nl=False)
        else:
            write_whole(out, text)


@app.command(**MODELS)
def fold(
    model: Annotated[
        str,
        typer.Argument(
            help="A merged model: its folder, a study, or a repository on the Hub.",
            show_default=False,
        ),
    ],
    out: Out = Path("plain"),
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the model's own by default.")
    ] = None,
    overwrite: Replace = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write a merged model as a plain model of the source architecture, for vLLM, llama.cpp and the
    like.

    Works where every hop of the path is one layer. Layers that run twice are written twice; the
    scales go into the weights. llama.cpp's converter makes a GGUF file of the folder.

    **Example**

    - `hf-evomerge fold my-search --out my-search/plain --dtype bfloat16`
    """
    with one_line_errors(again=True):
        from ..building.folded import fold as fold_model
        from ..search.folder import built_model

        quiet(bars=True)
        trusted = {"trust_remote_code": trust_remote_code}
        folder = fold_model(built_model(model), out, dtype=dtype, overwrite=overwrite, **trusted)
        echo(as_object({"folder": str(folder)}) if as_json else f"wrote {folder}")


@app.command(**MODELS)
def extract(
    fine_tune: Annotated[
        str,
        typer.Argument(
            help="The fine-tune: a folder, or a repository on the Hub.", show_default=False
        ),
    ],
    base: Annotated[
        str, typer.Option(help="The model that it is a fine-tune of.", show_default=False)
    ],
    out: Out = Path("adapter"),
    rank: Annotated[int, typer.Option(min=1, max=1 << 20, help="The rank of the adapter.")] = 16,
    file: Annotated[
        Path | None,
        typer.Option(
            "--search",
            help="A search file, on whose task the adapter and the fine-tune are scored.",
        ),
    ] = None,
    split: Split = None,
    overwrite: Replace = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write what a fine-tune changed as a LoRA adapter of its base, and show what the rank keeps,
    and costs in score.

    **Examples**

    - `hf-evomerge extract fine-tune --base base --rank 16 --out fine-tune-lora`

    - `hf-evomerge extract fine-tune --base base --out fine-tune-lora --search search.yaml`
    """
    with one_line_errors(again=True):
        from ..building.extracted import extract_adapter
        from ..fitness.comparison import compare
        from ..search.file.config import SearchConfig
        from ..search.score_model import evaluate_model

        quiet(bars=True)
        how: dict[str, Any] = {"split": split, "trust_remote_code": trust_remote_code}
        config = SearchConfig.load(file) if file is not None else None
        # first, as it may be refused
        whole = evaluate_model(fine_tune, config, **how) if config is not None else None
        adapter = extract_adapter(
            fine_tune,
            base,
            out,
            rank=rank,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
        )
        text = str(adapter)
        found = {"folder": str(out), **adapter.to_json()}
        if config is not None and whole is not None:
            cut = evaluate_model(base, config, adapter=str(out), **how)
            cost = compare(cut.scores, whole.scores, "fitness") or "none, of one example"
            scores = {"fine_tune": whole.scores.mean, "adapter": cut.scores.mean}
            found["fitness"] = {**scores, "difference": str(cost)}
            text += (
                f"\nthe fine-tune: {whole}\nthe base with the adapter: {cut}\ndifference in "
                f"fitness: {cost}"
            )
        echo(as_object(found) if as_json else text)


@app.command(**MODELS)
def inspect(
    model: Model, as_json: AsJson = False, trust_remote_code: TrustRemoteCode = False
) -> None:
    """Show what a checkpoint is, from its config and headers alone: layers, parameters, vocabulary,
    path, sources.

    **Example**

    - `hf-evomerge inspect my-search`
    """
    with one_line_errors():
        from ..checkpoints.headers import is_of_one_part
        from ..checkpoints.inspect import inspect_model
        from ..search.folder import built_model

        quiet(bars=True)
        folder = built_model(model)
        if is_of_one_part(folder):
            without_torch()
        report = inspect_model(folder, trust_remote_code=trust_remote_code)
        echo(report.to_json() if as_json else report)


@app.command(**MODELS)
def diff(
    a: Annotated[
        str, typer.Argument(help="A folder, or a repository on the Hub.", show_default=False)
    ],
    b: Annotated[
        str, typer.Argument(help="The checkpoint to compare it with.", show_default=False)
    ],
    base: Annotated[
        str | None, typer.Option(help="Their common ancestor: compare the task vectors as well.")
    ] = None,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show how two checkpoints differ per layer group: norms and cosines.

    **Example**

    - `hf-evomerge diff fine-tune-a fine-tune-b --base base`
    """
    with one_line_errors():
        from ..checkpoints.diff import diff_models

        quiet(bars=True)
        report = diff_models(a, b, base=base, trust_remote_code=trust_remote_code)
        echo(report.to_json() if as_json else report)
