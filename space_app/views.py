"""Views of a published model, for each tab, as HTML and text. Pure functions; everything from the
repository is escaped."""

import re
import shlex
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import edits
from edits import Route
from model_pictures import path_picture, weights_picture
from published import Published, merge_of
from texts import bar, counted, details, escape, message, table

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.fitness import Example
from hf_evomerge.pictures.climb import climb_scene, score_text
from hf_evomerge.pictures.fitness import fitness_scene
from hf_evomerge.pictures.front import front_scene
from hf_evomerge.pictures.scene import listed
from hf_evomerge.pictures.svg import responsive
from hf_evomerge.pictures.trials import FITNESS, Metric, accurate, of_stage, whole, without_first
from hf_evomerge.pictures.weights import spans, weights_of
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.stage_names import STAGES
from hf_evomerge.record import EVOLVED, Contribution, Results, Row

HUB = "https://huggingface.co"
CITATION = """@article{akiba2025evolutionary,
  title   = {Evolutionary optimization of model merging recipes},
  author  = {Akiba, Takuya and Shing, Makoto and Tang, Yujin and Sun, Qi and Ha, David},
  journal = {Nature Machine Intelligence},
  volume  = {7},
  pages   = {195--204},
  year    = {2025},
  note    = {arXiv:2403.13187}
}"""
NO_STUDY = (
    "The repository has no record of a search: the recipe was written by hand, or the record was "
    "not published."
)
_NUMBERS = ("no model", "it", "both", "all three", "all four", "all five", "all six")
_MOST_CAPTION = 300  # characters of a prompt
_MOST_BUTTON = 60  # characters of a problem on its button


def ask_label(chosen: int) -> str:
    """Label the button that asks so many parents beside the model."""
    return f"Ask {_NUMBERS[chosen + 1] if chosen + 1 < len(_NUMBERS) else f'all {chosen + 1}'}"


def button_of(example: Example) -> str:
    """A problem as the words of a button, in the language that more people read."""
    words = example.gloss or example.prompt
    return words if len(words) <= _MOST_BUTTON else f"{words[:_MOST_BUTTON].rsplit(' ', 1)[0]} …"


def gloss(published: Published, prompt: str) -> str:
    """Say what an example says in a language that more people read, and who solves it; empty for
    other prompts."""
    problem = next((each for each in published.problems if each.prompt == prompt), None)
    if problem is None:
        return ""
    said = problem.gloss
    right = problem.right
    if right.get(EVOLVED) and len(right) > 1 and sum(right.values()) == 1:
        alone = published.record.alone
        results = published.record.results
        more = (
            f", and {alone - 1:,} more of {results.examples:,} {published.tested_on}"
            if alone and results
            else ""
        )
        said += f" Only the merge solves this one{more}."
    return f'<p class="ev-faint ev-gloss">{escape(said)}</p>' if said else ""


def asked(published: Published, prompt: str) -> str:
    """The problem that an edited model answers, in the words of its button where it has some."""
    example = published.problem(prompt)
    words = prompt if example is None else example.gloss or example.prompt
    return (
        f'<p class="ev-faint">The problem: {escape(words[:_MOST_CAPTION])}</p>'
        if words.strip()
        else ""
    )


def share(link: str, recipe: str) -> str:
    """A link to what the visitor has changed, to copy, and its recipe, to keep; empty where nothing
    is changed."""
    file = f"data:text/yaml;charset=utf-8,{quote(recipe)}"
    kept = f'<a class="ev-share" download="recipe.yaml" href="{file}">Download recipe.yaml</a>'
    copied = (
        f'<a class="ev-share ev-copy" href="{escape(link)}" target="_blank" rel="noopener">Copy '
        "the link</a>"
    )
    return f'<div class="ev-facts">{copied if link else ""}{kept if recipe else ""}</div>'


def dare(published: Published, telling: Route | None = None) -> str:
    """Say what a visitor can do with the path, with edits to try, the telling one first."""
    can = "drop, repeat, move or scale its hops"
    if published.judge is None or not published.examples:
        return f'<p class="ev-faint">You can {can}; the answer follows.</p>'
    many = f"{len(published.examples)} {published.tested_on}"
    found = published.finder.capitalize()
    solved = published.solved(EVOLVED)
    ask = "" if solved is not None and solved[0] == solved[1] else " Can you do better?"
    said = f"{found} found this model.{ask} You can {can}; {escape(many)} judge it."
    own = Route.of(published)
    ideas = [
        (edit.link, edits.difference(own, edit, published.labels))
        for edit in [*([telling] if telling else []), *edits.ideas(published)]
    ]
    links = " ".join(f'<a href="{escape(link)}">{escape(words)}</a>' for link, words in ideas)
    return f'<p class="ev-faint">{said} {f"Try: {links}" if links else ""}</p>'


def scores(published: Published, done: int, right: int, before: int) -> str:
    """Draw the scores of the published model and of an edit side by side, and say in the end who
    leads."""

    def side(name: str, count: int, kind: str) -> str:
        return (
            '<div class="ev-side '
            f'{kind}"><span>{name}</span><span><b>{count}</b> of {done}</span>'
            f"{bar(count / max(done, 1))}</div>"
        )

    total = len(published.examples)
    found = published.finder
    of = f"of {total} {escape(published.tested_on)}"
    if right > before:
        verdict = f"You beat {found} by {right - before} {of}."
    elif right < before:
        verdict = f"{found.capitalize()} leads by {before - right} {of}."
    else:
        verdict = f"A draw: both solve {right} {of}."
    both = side(found.capitalize(), before, "ev-theirs") + side("You", right, "ev-yours")
    words = verdict if done == total else f"of {done} problems …"
    return f'<div class="ev-score" role="status">{both}<p class="ev-faint">{words}</p></div>'


def heading(published: Published) -> str:
    """Say what the model is for; its name, and what it was made of and how."""
    name = escape(published.name if published.on_hub else published.title)
    about = published.record.settings.about
    if published.on_hub:
        name = f'<a href="{HUB}/{quote(published.model)}" target="_blank" rel="noopener">{name}</a>'
    made = "evolved" if published.record.stages or published.trials else "merged by hand"
    of = (
        f" {made} from {listed([f'<b>{escape(source)}</b>' for source in published.sources])}"
        if published.sources
        else ""
    )
    steps = f", {counted(len(published.path), 'hop')}" if published.path else ""
    title = f"<h1>{escape(about) if about else name}</h1>"
    named = f"<b>{name}</b>," if about else ""
    notes = "".join(message(note, "warning") for note in published.notes)
    kind = "merged weights" if published.merge else "a plain model"
    if published.path:
        kind = (
            "merged weights, then a path through layers"
            if published.merge
            else "a path through the layers of its sources"
        )
    facts = f'<p class="ev-facts"><span>{named}{of}: {kind}{steps}</span></p>'
    return f'<div class="ev-heading">{title}{facts}{notes}</div>'


def path_view(published: Published) -> str:
    """The path, and the weights of a merge."""
    parts = []
    if published.path:
        way = Route.of(published)
        target = published.config.get("scale_target", "stream")
        scaled = (
            "what the MLP of the hop before adds" if target == "mlp_delta" else "the hidden state"
        )
        lines = (
            "how much of what its layer computes is added there"
            if published.gated
            else "the scale of the hop at its end"
        )
        parts.append(
            '<p class="ev-faint">Each mark is a hop: the text, as the model has it so far, '
            "goes through one layer.</p>"
        )
        picture = path_picture(way, published.labels, published.layers, gated=published.gated)
        more = (
            "Hops follow each other from left to right; each row is a layer. The width of "
            f"the line into a hop shows {lines}. "
            f"The size of its mark is its scale, by which {scaled} is multiplied on the way "
            "in; a hollow mark is a negative "
            "scale. Grey layers are not used. Hover, tap or use the arrow keys for details."
        )
        parts.append(picture + details("How to read it", f'<p class="ev-faint">{more}</p>'))
    if published.merge:
        if published.path:
            parts.append("<h2>The source “merged”: how much of each parent</h2>")
        parts.append(
            '<p class="ev-faint">How much of each parent is in each layer: 1 is all of what '
            "it differs by from the base, 0 is "
            "nothing, a negative weight takes it away. They need not add up to 1.</p>"
        )
        parts.append(weights_picture(weights_of(published.merge, published.sources)))
    return "".join(parts) or message("The repository has no recipe; there is nothing to draw.")


def fitness_view(published: Published) -> str:
    """The table of the results, and the picture of all trials."""
    if not published.trials:
        return message(NO_STUDY) + results_table(published)
    trials = without_first(published.trials)
    unit = published.record.unit
    name = str(Metric(FITNESS, unit))
    levels = published.record.levels
    picture = responsive(lambda width: fitness_scene(trials, levels, name, width)) if trials else ""
    words = (
        "Each dot is a trial: one model that was tried. A triangle is one that lies lower "
        "than the picture, a cross one that "
        "failed. The line is the best so far of those scored on all search problems."
    )
    if len(whole(trials)) < sum(trial.fitness is not None for trial in trials):
        words += (
            " Dots above it were scored on a part of the problems only, and owe something to luck."
        )
    if unit.startswith("nats"):
        words += (
            " Fitness is the natural logarithm (in nats) of the probability that a model "
            "gives to the right answer: 0 is "
            "certain, and 0.7 lower is half as likely."
        )
    said = details("How to read it", f'<p class="ev-faint">{words}</p>')
    title = (
        f"<h2>Every trial, on the {published.record.splits.get('search', '')} search problems</h2>"
    )
    return f"{results_table(published)}{front_view(published)}{title}{picture}{said}"


def front_view(published: Published) -> str:
    """The fitness over each other objective, with the points of the front; empty where there is one
    objective."""
    results = published.record.results or Results()
    objectives = published.objectives
    points = results.front
    trials = without_first(published.trials)
    if not objectives or not points:
        return ""
    drawn = ""
    for other in objectives[1:]:
        pair = (objectives[0], other)
        names = {objective.name for objective in pair}
        if shown := [point for point in points if point.search.keys() >= names]:
            drawn += responsive(partial(front_scene, trials, shown, pair, published.record.parents))
    words = (
        "Blue points are the front: whatever else was tried and is better than one of them "
        "in one objective is worse in "
        "another. The ring is the model on this page, diamonds are the parents. Hover, tap "
        "or use the arrow keys for details."
    )
    return f'<h2>The front</h2>{drawn}<p class="ev-faint">{words}</p>'


def results_table(published: Published) -> str:
    """The results on problems that the search was not shown; empty where there are none."""
    results = published.record.results
    unit = published.record.unit
    if results is None or not results.rows:
        return ""
    total = results.examples
    accurate = any(row.accuracy is not None for row in results.rows)
    heads = [
        "model",
        *[f"right of {total:,}"] * accurate,
        str(Metric(FITNESS, unit)),
        "evaluations",
    ]

    def cells(row: Row) -> list[object]:
        right = (
            ""
            if row.accuracy is None
            else f"{row.accuracy * total:.0f} ± {(row.accuracy_se or 0) * total:.0f}"
        )
        return [
            row.model,
            *[right] * accurate,
            _with_minus(row.fitness_text),
            round(row.evaluations) or "",
        ]

    caption = f"{total:,} {published.tested_on}; ± is one standard error"
    winner = next((at for at, row in enumerate(results.rows) if row.winner), None)
    said = "".join(f"<li>{escape(_with_minus(sentence))}</li>" for sentence in results.verdict)
    verdict = details("How sure that is", f'<ul class="ev-verdict">{said}</ul>') if said else ""
    shown = table(heads, map(cells, results.rows), caption=caption, mark=winner)
    given = ""
    if rows := [(each.source, _with_minus(str(each.left_out))) for each in results.contributions]:
        caption = "In fitness, with intervals of 95 %"
        given = f"<h2>What each source gives</h2>{table(Contribution.HEADS, rows, caption=caption)}"
    return f"<h2>Results</h2>{shown}{verdict}{given}"


def _with_minus(words: str) -> str:
    """The same with a proper minus before numbers, as `texts.number` has it."""
    return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", words)


@lru_cache(256)
def _merge(recipe: str) -> dict[str, Any]:
    """The merge of a trial's recipe; empty where that cannot be read."""
    with suppress(EvoMergeError):
        return merge_of(Recipe.from_yaml(recipe))
    return {}


def film_view(published: Published, at: int, *, runs: bool = False) -> tuple[str, str]:
    """The moments of the film as bars, and the model of the one at a place among them; with `runs`
    others follow."""
    stage, steps = published.film
    if not steps:
        return message(NO_STUDY), ""
    at = max(0, min(at, len(steps) - 1))
    trial = steps[at].trial
    exact = accurate(of_stage(published.trials, stage))
    most = published.record.splits.get("search") or max(each.examples for each in published.trials)
    bars = responsive(lambda width: climb_scene(steps, at, stage, exact, width, problems=most))
    name = "The published model" if trial == published.winner else f"Trial {trial.number}"
    which = f"the last batches of {trial.examples}" if trial.examples < most else f"the {most}"
    value = (
        f"{score_text(steps[at], exact)} right"
        if exact
        else f"fitness {score_text(steps[at], exact)}"
    )
    read = counted(round(steps[at].evaluations * most), "problem")
    of = escape(STAGES.get(stage, stage))
    on = which if trial.examples else "the"
    said = f"<p><b>{name}</b>: {read} read so far, {of}; {value} on {on} search problems.</p>"
    if trial.path:
        way = Route(trial.path, trial.scales)
        drawn = path_picture(
            way, published.labels, published.layers, gated=published.gated, listed=False
        )
    else:
        merges = [weights_of(_merge(step.trial.recipe), published.sources) for step in steps]
        drawn = (
            weights_picture(merges[at], listed=False, among=spans(merges))
            if merges[at].rows
            else ""
        )
    return f'<div class="{"ev-runs" if runs else ""}">{bars}</div>', said + drawn


def commands(published: Published) -> str:
    """List commands to load, rebuild and fold the model."""
    model = published.model
    here = not published.on_hub
    if here and (real := (Path(model) / "config.json").resolve().parent / "config.json").is_file():
        # a page at home may show links to the files of the folder that it was given
        model = str(real.parent)
    custom = ", trust_remote_code=True" if published.path else ""
    library = "transformers"
    kind = "AutoModelForCausalLM"
    if published.base is not None:
        library = "peft"
        kind = "AutoPeftModelForCausalLM"
    unpublished = listed(
        [parent.label for parent in published.parents if parent.missing and not here]
    )
    again = f"build it again from its parents{'' if here else ', and compare'} (shell)"
    if unpublished:
        again = f"only its author can build it again: {unpublished} cannot be had from the Hub"
    lines = [
        "# load it (Python)",
        f"from {library} import {kind}",
        "from transformers import AutoTokenizer",
        f'model = {kind}.from_pretrained("{model}"{custom})',
        f'tokenizer = AutoTokenizer.from_pretrained("{model}"{custom})',
        "",
        f"# {again}",
        "pip install hf-evomerge",
    ]
    if here:
        lines.append(f"hf-evomerge merge {shlex.quote(f'{model}/recipe.yaml')} --out rebuilt")
    elif not unpublished:
        lines.append(f"hf-evomerge reproduce {model} --out rebuilt")
    if published.path:
        lines += [
            "",
            "# a plain model of the parents' architecture, for vLLM, llama.cpp and others (shell)",
            f"hf-evomerge fold {shlex.quote(model)} --out plain",
        ]
    return "\n".join(lines)


def licenses(published: Published) -> str:
    """The license of the model, and those of its parents when it was pushed."""
    card = published.card
    own = (
        card.get("license_name")
        or card.get("license")
        or ("not stated" if published.on_hub else "push decides it")
    )
    rows = [(published.name, "this model", own, (published.revision or "")[:12])]
    for parent in published.parents:
        license = published.record.licenses.get(parent.model) or parent.missing or "not stated here"
        name = parent.label if Path(parent.model).is_absolute() else parent.model
        rows.append((name, parent.role, license, (parent.revision or "")[:12]))
    caption = "Licenses, as the models' pages stated them when this one was pushed"
    return table(("model", "what it is", "license", "revision"), rows, caption=caption, mark=0)
