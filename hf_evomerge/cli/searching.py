"""The commands that start and search: demo, init; search, show, eval."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..demo import EVALUATIONS
from ..errors import EvoMergeError
from ..lines import callable_here, echo, say
from ..recipes.recipe import RECIPE_FILE
from ..recipes.whole_file import write_whole
from .common import (
    LOGGER,
    SEARCH,
    START,
    AsJson,
    License,
    Model,
    Out,
    Private,
    Ray,
    Split,
    Study,
    TrustRemoteCode,
    WithSpace,
    Workers,
    app,
    as_object,
    one_line_errors,
    quiet,
    reading,
)

if TYPE_CHECKING:
    from ..hub.push_plan import PushOptions
    from ..search.file.config import SearchConfig
    from ..search.results.result import Result

    Push = tuple[str, PushOptions]


@app.command(**START)
def demo(
    out: Out = Path("evomerge-demo"),
    workers: Annotated[
        int, typer.Option(min=1, max=1024, help="Processes that evaluate at the same time.")
    ] = min(2, os.cpu_count() or 1),
    evaluations: Annotated[
        int, typer.Option(min=8, help="Budget of each search, in scores of all search problems.")
    ] = EVALUATIONS,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the searches.")] = 0,
    push_to: Annotated[
        str | None,
        typer.Option(
            help="Publish the DFS winner as user/name on the Hub, and load it from there."
        ),
    ] = None,
) -> None:
    """Merge two tiny specialists that ship with the package, in a few minutes and without a
    network.

    **Example**

    - `hf-evomerge demo --out evomerge-demo`
    """
    with one_line_errors(again=True):
        from ..demo.quickstart import run_demo

        quiet()
        run_demo(out, workers=workers, evaluations=evaluations, seed=seed, push_to=push_to)


@app.command(**START)
def init(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help=(
                "Two fine-tunes of one model, or more: models or LoRA adapters; a folder of "
                "adapters."
            ),
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help='Problems, one JSON object per line: {"prompt": "2 + 3 =", "answer": 5}. Several '
            "files are several skills, which the result is to have all: --data a.jsonl b.jsonl. "
            "Without answers: prompts of each model, in their order.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The model that they were fine-tuned from; by default what their adapters, cards "
            "or configs name."
        ),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            help=(
                "Copy a file that comes with the package, such as the paper's own search: "
                "evollm-jp-ps."
            )
        ),
    ] = None,
    no_measure: Annotated[
        bool,
        typer.Option(
            "--no-measure",
            help=(
                "Guess what stands between prompt and answer; else every model scores 16 examples."
            ),
        ),
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Take the demo's models, and write its problems.jsonl.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Default: search.yaml, or the example's name.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a search file for some models and problems, with comments, and say what to run next.

    **Examples**

    - `hf-evomerge init your-name/fine-tune-a your-name/fine-tune-b
      --base your-name/base --data problems.jsonl`

    - `hf-evomerge init my-adapters --data problems.jsonl`

    - `hf-evomerge init coder writer --base base --data code.jsonl letters.jsonl`

    - `hf-evomerge init --demo`

    - `hf-evomerge init --example evollm-jp-ps`
    """
    with one_line_errors():
        if (example is not None or demo) and (sources or data or base or (example and demo)):
            raise EvoMergeError(
                "--demo and --example say it all; give one of them, and leave out models, "
                "--base and --data"
            )
        if example is not None:
            file = _example(example)
            out = _new(out or Path(file.name))
            write_whole(out, file.read_text(encoding="utf-8"))
            typer.echo(f"wrote {out}")
            return
        out = out or Path("search.yaml")
        if demo:
            from ..demo.quickstart import PROBLEMS, SPECIALISTS

            data = [_new(_new(out).with_name("problems.jsonl"))]
            models = _new(out.with_name("models"))
            shutil.copytree(SPECIALISTS, models)  # the installation's move when it is updated
            base, *sources = (str(models / name) for name in ("base", "japanese", "maths"))
            write_whole(data[0], (PROBLEMS / "test.jsonl").read_text(encoding="utf-8"))
        elif not sources or not data:
            missing = "give the names of two models or more and --data FILE"
            if sources:
                missing = "--data FILE is missing: problems with their answers"
            raise EvoMergeError(f"{missing}, or --demo, or --example NAME")
        _new(out)
        # after --data, what ends in .jsonl is data too: an option takes one value
        data += [Path(name) for name in sources if name.endswith(".jsonl")]
        sources = [name for name in sources if not name.endswith(".jsonl")]
        reading(f"{' and '.join(map(str, data))} and the models")
        import torch

        from ..search.answer_form import measure_form
        from ..search.file.scaffold import draft_search

        quiet()
        device = ("cpu", "cuda:0", "auto")[min(2, torch.cuda.device_count())]
        measure = None if no_measure else measure_form
        draft = draft_search(sources, data, base=base, device=device, measure=measure)
        write_whole(out, draft.text)
        name = shlex.quote(str(out))
        study = shlex.quote(f"my-{out.stem}")
        publish = f"push {study} YOUR-NAME/YOUR-MERGE --space --examples 50"
        check = f"search {name} --out {study} --dry-run"
        steps = {
            "Check everything, and say how long it takes": check,
            "Search; the same command goes on after a stop": f"search {name} --out {study}",
            "See what the winner answers": f"eval {study} --show 3",
            "Publish the model with a card and a Space": publish,
        }
        if as_json:
            commands = [callable_here(f"hf-evomerge {step}") for step in steps.values()]
            typer.echo(as_object({"file": str(out), "found": draft.found, "next": commands}))
            return
        say("\n".join([*draft.found, f"wrote {out}; read it, then:"]))
        for what, step in steps.items():
            echo(f"# {what}\nhf-evomerge {step}")  # not wrapped: commands are copied


def _new(file: Path) -> Path:
    """A file that does not exist yet, in a folder that does."""
    if file.exists():
        raise EvoMergeError(
            f"{file}: exists already; choose another place with --out, or move it away"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _example(name: str) -> Path:
    """A file that comes with the package."""
    from ..hub.bundled import bundled

    files = {file.stem: file for file in sorted(bundled("examples").glob("*.*"))}
    if name not in files:
        raise EvoMergeError(f"--example {name}: there are {', '.join(files)}")
    return files[name]


@app.command(**SEARCH)
def search(
    file: Annotated[
        Path,
        typer.Argument(
            help="The search file (YAML; `init` writes a first one), or a study that goes on.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The study's folder; by default the file's name.",
            show_default=False,
        ),
    ] = None,
    workers: Workers = None,
    ray: Ray = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, say what would be done and how long it takes, and stop.",
        ),
    ] = False,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Write the recipe only; do not build the model.")
    ] = False,
    push_to: Annotated[
        str | None, typer.Option(help="Publish the winner as user/name when the search ends.")
    ] = None,
    space: WithSpace = False,
    private: Private = False,
    license: License = None,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Evolve a merge; write the winner's recipe, the built model and plots.

    A search that was stopped goes on where it was: give the same file and `--out` again, or the
    study's folder. The trials are the same as without the interruption. Baselines that were added
    to the file since get their rows in a new table. Device, seed and limits are set in the file:
    `compute: {device: cuda:0, seed: 1}`.

    **Examples**

    - `hf-evomerge search search.yaml --out my-search --workers 2`

    - `hf-evomerge search search.yaml --out my-search --dry-run`

    - `hf-evomerge search search.yaml --out my-search --push-to me/my-merge --space`

    - `hf-evomerge search my-search`
    """
    with one_line_errors(again=True):
        reading(f"{file} and its models")
        from ..search.file.config import SearchConfig
        from ..search.folder import check_out, resumed

        quiet()
        goes_on = file.is_dir()
        if goes_on and out is not None:
            raise EvoMergeError(f"{file}: a folder, whose search goes on there; leave out --out")
        config = resumed(file) if goes_on else SearchConfig.load(str(file))
        out = file if goes_on else out or Path(file.stem)
        push = _checked_push(
            config, push_to, no_model, {"space": space, "private": private, "license": license}
        )
        if dry_run:
            from ..search.plan import plan_search

            check_out(config, out)
            plan = plan_search(config, trust_remote_code=trust_remote_code)
            if as_json:
                echo(as_object(plan.to_json(workers)))
            else:
                say(plan.to_text(workers))
        else:
            _run(
                config,
                out,
                build=not no_model,
                push=push,
                as_json=as_json,
                workers=workers,
                ray=ray,
                trust_remote_code=trust_remote_code,
            )


def _checked_push(
    config: SearchConfig, push_to: str | None, no_model: bool, how: Mapping[str, Any]
) -> Push | None:
    """Check where the winner is to be published, and how; None where it is not."""
    if push_to is None:
        if any(how.values()):
            raise EvoMergeError(
                "--space, --private and --license say how to publish, and nothing is "
                "published; add --push-to user/name"
            )
        return None
    from ..hub.push import check_push
    from ..hub.push_plan import PushOptions

    if no_model:
        raise EvoMergeError(
            "--push-to needs the model that --no-model does not build; leave out one of them"
        )
    options = PushOptions(**how)
    check_push(push_to, config.refs, options)
    return push_to, options


@app.command("eval", **SEARCH)
def evaluate(
    model: Model,
    file: Annotated[
        Path | None,
        typer.Option(
            "--search",
            help=(
                "The search file whose task and data are used. Default: the search that produced "
                "the model."
            ),
        ),
    ] = None,
    split: Split = None,
    show: Annotated[
        int, typer.Option(min=0, help="Print this many problems with the model's answers.")
    ] = 0,
    adapter: Annotated[
        str | None, typer.Option(help="A LoRA adapter of the model: a folder, or a repository.")
    ] = None,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score one model on the task of a search.

    **Examples**

    - `hf-evomerge eval my-search --split test --show 3`

    - `hf-evomerge eval your-name/fine-tune-a --search search.yaml`
    """
    with one_line_errors():
        reading(model)
        from ..recipes.names import named_folder
        from ..search.file.config import SearchConfig
        from ..search.folder import built_model
        from ..search.score_model import evaluate_model
        from ..search.study.database import STUDY_FILE
        from ..search.study.paths import settings_in

        quiet()
        folder = named_folder(model)
        own = next(
            (place for place in (folder, folder.parent) if (place / STUDY_FILE).is_file()), None
        )
        if file is None and not folder.is_dir() and model.count("/") != 1:
            raise EvoMergeError(
                f"{model}: no such folder; give a study, a model's folder, or a repository "
                "and --search"
            )
        if file is None and own is None:
            raise EvoMergeError(
                f"{model}: no task is known for this model; add --search search.yaml, which has one"
            )
        config = SearchConfig.load(file) if file is not None else settings_in(own or folder)
        found = evaluate_model(
            built_model(model),
            config,
            split=split,
            show=show,
            adapter=adapter,
            trust_remote_code=trust_remote_code,
        )
        if as_json:
            echo(as_object(found.to_json()))
        else:
            say(str(found))


@app.command(**SEARCH)
def show(
    study: Study,
    trials: Annotated[
        bool, typer.Option("--trials", help="Show the best trials of each stage instead.")
    ] = False,
    best: Annotated[int, typer.Option(min=1, help="How many of the best trials to list.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show the result of a search, or where it stands; or its trials.

    **Examples**

    - `hf-evomerge show my-search`

    - `hf-evomerge show my-search --trials --best 10`
    """
    with one_line_errors():
        from ..search.results.show import describe_result, describe_study, study_facts

        if as_json:
            typer.echo(as_object(study_facts(study, best)))
        else:
            say(describe_study(study, best) if trials else describe_result(study))


def _next(result: Result, out: Path, *, build: bool) -> list[str]:
    """Say what to do with a result: keep what is simpler and does as well, or look and publish."""
    from ..recipes.recipe import SourceRef
    from ..search.results.verdict import FORM, lost_skills, solves_nothing
    from ..search.study.files import INSTEAD_FILE, TOGETHER_FOLDER

    name = shlex.quote(str(out))
    ask_lora = "; does a LoRA alone do better? add lora to the baselines, and search again"
    simpler = result.instead
    winner = next(row for row in result.rows if row.winner)
    best = simpler or winner
    if lost := lost_skills(result.rows, best):
        has = f"{best.model.partition(' (')[0]} keeps {', '.join(map(str, lost))}"
        return [f"next:   keep the models: {has}; give more prompts or examples of each"]
    # of a model that is wrong more often than right the next step is no push
    weak = list[str]()
    solved = best.scores.accuracy
    if solved is not None and solved < 0.5:
        more = "give it more search examples"
        if best is winner and not result.by_heart:
            more += ", or raise evaluations"
        if not any(row.stage == "lora" for row in result.rows):
            more += ask_lora
        weak = [f"        it solves {solved:.0%} of the problems: {more}"]
    if simpler is not None and simpler.against is not None:
        lines = [f"next:   {simpler.against.keep or f'keep {simpler.against.name}'}"]
        if (out / INSTEAD_FILE).exists():
            recipe = shlex.quote(str(out / INSTEAD_FILE))
            lines.append(f"        hf-evomerge merge {recipe} --out {name}/instead")
        if simpler.stage == "lora" and isinstance(simpler.target, SourceRef):
            tuned = shlex.join([simpler.target.model, "--adapter", str(simpler.target.adapter)])
            lines.append(f"        hf-evomerge eval {tuned} --search {name}/search.yaml --show 3")
            lines += weak
        if simpler.stage == "together":
            model = shlex.quote(str(out / TOGETHER_FOLDER))
            look = f"        hf-evomerge eval {model} --show 3"
            push = f"        hf-evomerge push {model} YOUR-NAME/YOUR-MERGE --space"
            lines += weak or [look, push]
        return lines
    wrong_form = solves_nothing(result.rows) and not result.by_heart
    if wrong_form:
        LOGGER.warning(f"look at what it answers: {FORM}")
    if winner.constant is not None:
        return [f"next:   look at the examples: {winner.constant}"]
    if not build:
        return []
    lines = [f"next:   hf-evomerge eval {name} --show 3"]
    if not wrong_form:
        push = f"        hf-evomerge push {name} YOUR-NAME/YOUR-MERGE --space --examples 50"
        lines += weak or [push]
    return lines


def _run(
    config: SearchConfig,
    out: Path,
    *,
    build: bool,
    push: Push | None,
    as_json: bool = False,
    **how: Any,
) -> None:
    """Run a search, or go on with it, below a table of its phases; say what it has left, and
    publish it where asked."""
    from ..search.reports.display import LiveTable
    from ..search.run import run_search
    from ..search.study.files import TOGETHER_FOLDER
    from .publishing import publish

    with LiveTable(config=config) as table:
        result = run_search(config, out, callbacks=[table], build=build, **how)
    if as_json:
        from ..search.results.show import study_facts

        facts = study_facts(out)
        steps = _next(result, out, build=build)
        facts["next"] = [step.removeprefix("next:").strip() for step in steps]
        facts |= {} if push is None else {"published": publish(out, *push, quietly=True)}
        typer.echo(as_object(facts))
        return
    say(str(result))
    instead = result.instead
    beside = instead is not None and instead.stage == "together"
    model = out / (TOGETHER_FOLDER if beside else "model")
    recipes = (model / RECIPE_FILE, out / RECIPE_FILE)  # an adapter has none of its own
    lines = [
        f"recipe: {recipes[0] if beside and recipes[0].exists() else recipes[1]}",
        *([f"model:  {model}"] if build else []),
        f"plots:  {out / 'plots'}",
    ]
    if push is None:
        lines += _next(result, out, build=build)
    echo("\n".join(lines))  # not wrapped: commands are copied
    if push is not None:
        publish(out, *push)
        if not push[1].space:
            echo(f"next:   hf-evomerge space {push[0]} --model {push[0]}")
