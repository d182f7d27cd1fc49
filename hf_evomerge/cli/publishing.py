"""The commands around the Hub: push, reproduce, make a Space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EvoMergeError
from ..lines import echo, say
from .common import (
    LOGGER,
    SHARE,
    AsJson,
    License,
    Private,
    RepoId,
    TrustRemoteCode,
    WithSpace,
    app,
    as_object,
    one_line_errors,
    quiet,
    reading,
)

if TYPE_CHECKING:
    from ..hub.push_plan import PushOptions

Published = Annotated[
    list[str] | None,
    typer.Option(help="FOLDER=user/name: where a source folder was published; can be repeated."),
]
Examples = Annotated[
    int, typer.Option(min=0, help="Publish this many test problems, for visitors to try.")
]


@app.command(**SHARE)
def push(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A finished study, or the folder of a built model.", show_default=False
        ),
    ],
    repo_id: RepoId,
    private: Private = False,
    space: WithSpace = False,
    trials: Annotated[
        bool,
        typer.Option(
            "--trials", help="Also publish the search's trials, as a data set of the same name."
        ),
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="The branch to commit to; it is made if it does not exist.")
    ] = None,
    license: License = None,
    language: Annotated[
        list[str] | None, typer.Option(help="ISO 639 code for the card; can be repeated.")
    ] = None,
    published: Published = None,
    examples: Examples = 0,
    about: Annotated[
        str | None,
        typer.Option(help="What the model is for, one sentence; the search file's by default."),
    ] = None,
    no_card: Annotated[
        bool,
        typer.Option(
            "--no-card", help="Do not write a card; the README on the Hub stays as it is."
        ),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Push into a repository that has files from elsewhere too."),
    ] = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be published, and stop.")
    ] = False,
) -> None:
    """Publish a merged model with its recipe, the record of its search, pictures and a card, in one
    commit.

    After a failure, run it again: what is uploaded is not uploaded again. Only what `--dry-run`
    lists leaves this machine.

    **Examples**

    - `hf-evomerge push my-search me/my-merge --private --dry-run`

    - `hf-evomerge push my-search me/my-merge --space --examples 50`
    """
    with one_line_errors(again=True):
        reading(folder)
        from ..hub.push import preview_push
        from ..hub.push_plan import PushOptions

        quiet()
        options = PushOptions(
            private=private,
            revision=revision,
            license=license,
            languages=tuple(language or ()),
            published=_folders(published or []),
            examples=examples,
            about=about,
            card=not no_card,
            space=space,
            trials=trials,
            replace=replace,
            trust_remote_code=trust_remote_code,
        )
        if dry_run:
            plan = str(preview_push(folder, repo_id, options))
            if as_json:
                echo(as_object({"plan": plan.split("\n")}))
            else:
                say(plan)
            return
        found = publish(folder, repo_id, options, quietly=as_json)
        if as_json:
            typer.echo(as_object(found))


@app.command(**SHARE)
def reproduce(
    repo_id: RepoId,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Keep the rebuilt model in this folder.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Rebuild a published model from its recipe and its sources, and compare it with what is on the
    Hub, bit for bit.

    The exit status is 1 if they differ.

    **Example**

    - `hf-evomerge reproduce me/my-merge`
    """
    with one_line_errors(again=True):
        from ..hub.reproduce import reproduce as reproduce_model

        quiet(bars=True)
        result = reproduce_model(
            repo_id, revision=revision, out=out, trust_remote_code=trust_remote_code
        )
        typer.echo(result)
        if not result.same:
            raise typer.Exit(1)


@app.command(**SHARE)
def space(
    repo_id: Annotated[
        str | None,
        typer.Argument(
            help="The Space, user/name; or a study or a model's folder, shown here.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model on the Hub that the Space shows.")
    ] = None,
    local: Annotated[
        str | None,
        typer.Option(help="Run the app here instead, for a model's folder or repository."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The model's branch or commit.")] = None,
    private: Private = False,
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Here: the port; a free one from 7860 on by default.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Here: the address to listen at; 0.0.0.0 lets other machines in."),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Here: make a public link, by Gradio.")
    ] = False,
) -> None:
    """Make the Gradio Space of a published model, or run the same app on this machine.

    **Examples**

    - `hf-evomerge space me/my-merge --model me/my-merge`

    - `hf-evomerge space my-search`

    - `hf-evomerge space --local me/my-merge`
    """
    with one_line_errors():
        from ..hub.space import push_space, run_space
        from ..recipes.names import named_folder

        quiet()
        if (
            repo_id is not None
            and local is None
            and model is None
            and named_folder(repo_id).is_dir()
        ):
            local = repo_id
            repo_id = None
        if local is not None:
            if repo_id is not None or model is not None:
                raise EvoMergeError(
                    "--local runs the app on this machine; leave out the Space's name and --model"
                )
            run_space(local, revision=revision, port=port, host=host, share=share)
        elif port is not None or host is not None or share:
            raise EvoMergeError(
                "--port, --host and --share are for a page on this machine; give a folder, or "
                "--local MODEL"
            )
        elif repo_id is None or model is None:
            what = (
                ""
                if repo_id is None
                else f"{repo_id}: there is no such folder here; for a Space on the Hub "
            )
            raise EvoMergeError(
                f"{what}give the Space's name and --model, or --local MODEL to run the app here"
            )
        else:
            typer.echo(
                f"published {push_space(repo_id, model, revision=revision, private=private).url}"
            )


def publish(
    folder: Path, repo_id: str, options: PushOptions, *, quietly: bool = False
) -> dict[str, Any]:
    """Publish, print where it is and what to know about it unless `quietly`, and return it as
    plain data."""
    from ..hub.push import push_model

    pushed = push_model(folder, repo_id, options)
    model = pushed.model
    beside = {"space": pushed.space, "trials": pushed.trials}
    urls = {name: commit and commit.url for name, commit in beside.items()}
    if not quietly:
        for warning in pushed.warnings:
            LOGGER.warning(warning)
        what = "published" if model.changed else "up to date:"
        # whole, for `from_pretrained(..., revision=...)`
        typer.echo(f"{what} {model.url} at {model.sha}")
        for name, url in zip(("Space", "trials"), urls.values(), strict=True):
            if url is not None:
                typer.echo(f"{name}: {url}")
    found = {"url": model.url, "sha": model.sha, "changed": model.changed}
    return {**found, **urls, "warnings": pushed.warnings}


def _folders(pairs: list[str]) -> dict[str, str]:
    """FOLDER=user/name, as a mapping."""
    folders = {}
    for pair in pairs:
        folder, _, repo_id = pair.rpartition("=")
        if not folder or not repo_id:
            raise EvoMergeError(f"--published {pair}: write it as FOLDER=user/name")
        folders[folder] = repo_id
    return folders
