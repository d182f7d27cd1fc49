"""What each tab says about a published model, as HTML and text. Pure functions; everything from the repository is escaped."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import edits
import mixing
from pictures import path_picture, weights_picture
from published import Published, merge_of
from texts import Card, Marked, counted, details, escape, listed, message, number, table

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.pictures.fitness import fitness_name, fitness_range, fitness_scene, shows_accuracy, spread_scene
from hf_evomerge.pictures.front import front_scene
from hf_evomerge.pictures.svg import responsive
from hf_evomerge.pictures.trials import in_steps, of_stage, stages, whole, without_first
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.stage_names import STAGES
from hf_evomerge.record import Results

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
NO_PATH = (
    "Nothing can be changed here: the layers of this model are in their usual order, so there is no path to change, and not "
    "all of its parents can be loaded to merge them anew. The Weights tab shows how much of each went into each layer."
)
NO_STUDY = "The repository has no record of a search: the recipe was written by hand, or the record was not published."


_LEADS = ("lead", "fitness_lead")
_MOST_CAPTION = 200  # characters of a prompt
UNASKED = Card("the evolved model", "evolved", state="", note="press Ask for its answer")


def gloss(text: str) -> str:
    """What an example says, in a language that more people read."""
    return f'<p class="ev-faint">In other words: {escape(text)}</p>' if text else ""


def share(link: str) -> str:
    """A link to what the visitor has changed; empty where nothing is."""
    return f'<a class="ev-share" href="{escape(link)}" target="_blank" rel="noopener">Link to this edit</a>' if link else ""


def lens_view(published: Published, prompt: str, written: Sequence[str], liked: Sequence[Sequence[str]]) -> str:
    """What the model would write after each hop, as a table; what it ends with stands out.

    Args:
        published: The model.
        prompt: What it answers.
        written: The tokens of its answer.
        liked: For each hop, the token that the head likes best in place of each of them.
    """
    labels = [edits.describe(hop, 1.0, published.labels).removesuffix(", scale 1") for hop in published.path]
    names = labels if len(labels) == len(liked) else [f"layer {at}" for at in range(len(liked))]
    rows = [
        [f"{at}: {name}", *(Marked(token) if token == wanted else token for token, wanted in zip(tokens, written, strict=True))]
        for at, (name, tokens) in enumerate(zip(names, liked, strict=True), 1)
    ]
    asked = prompt if len(prompt) <= _MOST_CAPTION else f"{prompt[:_MOST_CAPTION]} …"
    step = "hop" if published.path else "layer"
    caption = (
        f"What the model would write to “{asked}” if it ended after this {step}; bold and green where its answer has the same "
        "token there, (end) is the end of the answer"
    )
    return table([step, *written], rows, caption=caption)


def kind_of(published: Published) -> str:
    """Which search the model comes from, in words."""
    if published.path and published.merge:
        return "merged weights, then a path through layers"
    if published.path:
        return "a path through the layers of its sources"
    return "merged weights" if published.merge else "a plain model"


def heading(published: Published) -> str:
    """The name of the model and what is known about it at a glance."""
    name = escape(published.name)
    if published.on_hub:
        name = f'<a href="{HUB}/{quote(published.model)}" target="_blank" rel="noopener">{name}</a>'
    chips = [kind_of(published)]
    if published.path:
        chips.append(counted(len(published.path), "hop"))
    row = published.record.winner
    if row is not None and row.accuracy is not None:
        chips.append(f"{100 * row.accuracy:.1f} % right on held-out problems")
    parents = published.sources
    made = "Evolved" if published.record.stages or published.trials else "Merged by hand"
    said = f"<span>{made} from {listed([f'<b>{escape(name)}</b>' for name in parents])}.</span>" if parents else ""
    about = f'<p class="ev-about">{escape(about)}</p>' if (about := published.record.settings.about) else ""
    tags = "".join(f'<span class="ev-chip">{escape(chip)}</span>' for chip in chips)
    notes = "".join(message(note, "warning") for note in published.notes)
    return f'<div class="ev-heading"><h1>{name}</h1>{about}<div class="ev-facts">{said}{tags}</div>{notes}</div>'


def path_view(published: Published) -> str:
    """The path, and the weights of a merge."""
    parts = []
    if published.path:
        way = edits.Route(published.path, published.scales)
        target = published.config.get("scale_target", "stream")
        scaled = "what the MLP of the hop before adds" if target == "mlp_delta" else "the hidden state"
        lines = "how much of what its layer computes is added there" if published.gated else "the scale of the hop at its end"
        parts.append("<h2>The route of the hidden state</h2>")
        parts.append(path_picture(way, published.labels, published.layers, gated=published.gated))
        parts.append(
            '<p class="ev-faint">A hop is one step: the hidden state, which is what the model has made of the text so far, '
            "goes through one layer. Hops follow each other from left to right; each row is a layer. The width of the line "
            f"into a hop shows {lines}. The size of its mark is its scale, by which {scaled} is multiplied on the way in; a "
            "hollow mark is a negative scale. Grey layers are not used. Hover, tap or use the arrow keys for details.</p>"
        )
    if published.merge:
        parts.append(f"<h2>{'The source “merged”: how' if published.path else 'How'} much of each parent</h2>")
        parts.append(weights_picture(published.merge, published.sources))
        parts.append(
            '<p class="ev-faint">A weight says how much of a parent goes into a layer: 1 is all of what it differs by from the '
            "base, 0 is nothing, and a negative weight (outlined) takes it away. Weights need not add up to 1.</p>"
        )
    return "".join(parts) or message("The repository has no recipe; there is nothing to draw.")


def merge_view(published: Published, factors: mixing.Factors) -> str:
    """The weights of a merge as factors change them, where it has one per parent; empty where there is no merge."""
    if not published.merge:
        return ""
    changed = mixing.edited(published.merge, factors, published.mixes)
    note = '<p class="ev-faint">The picture shows the merge as published.</p>' if factors and changed is None else ""
    return note + weights_picture(changed or published.merge, published.sources)


def evolution_stages(published: Published) -> list[tuple[str, str]]:
    """The stages whose generations can be replayed, as (words, stage)."""
    there = [stage for stage in stages(published.trials) if stage != "random"]
    return [(STAGES.get(stage, stage), stage) for stage in there]


def fitness_view(published: Published) -> str:
    """The picture of all trials and the table of the results."""
    if not published.trials:
        return message(NO_STUDY) + results_table(published)
    trials, name = without_first(published.trials), fitness_name(published.record.unit)
    picture = responsive(lambda width: fitness_scene(trials, published.record.levels, name, width)) if trials else ""
    words = (
        "Each dot is a trial: one model that was tried. A triangle is one that lies lower than the picture, a cross one that "
        "failed. The dark shade holds the middle half of the trials, the light one the middle 80\N{NO-BREAK SPACE}%. The thick "
        "line is the best so far of those scored on all search examples"
    )
    words += ", the dotted one its share of right answers (axis on the right)." if shows_accuracy(published.trials) else "."
    if len(whole(trials)) < sum(trial.fitness is not None for trial in trials):
        words += (
            " Dots above it were scored on a part of the examples only, and owe something to luck; it begins where the first "
            "model was scored on all."
        )
    if published.record.unit.startswith("nats"):
        words += (
            " Fitness is the natural logarithm (in nats) of the probability that a model gives to the right answer: 0 is "
            "certain, and 0.7 lower is half as likely."
        )
    said = f'<p class="ev-faint">{words}</p>'
    return f"{front_view(published)}<h2>Fitness over evaluations</h2>{picture}{said}{results_table(published)}"


def front_view(published: Published) -> str:
    """The fitness over each other objective, and the points of the front as a table; empty where there is one objective."""
    results, objectives = published.record.results or Results(), published.objectives
    points, trials = results.front, without_first(published.trials)
    if not objectives or not points:
        return ""
    drawn = ""
    for pair in ((objectives[0], other) for other in objectives[1:]):
        shown = [point for point in points if all(objective.name in point.search for objective in pair)]
        if shown:
            drawn += responsive(partial(front_scene, trials, shown, pair, published.record.parents))
    heads = ["point", "trial", *(f"{one.name}, {split}" for split in ("search", results.split) for one in objectives)]
    rows = [
        (
            point.number,
            point.trial,
            *(number(found.get(one.name), 4) for found in (point.search, point.judged) for one in objectives),
        )
        for point in points
    ]
    winner = next((at for at, point in enumerate(points) if point.winner), None)
    listed = table(heads, rows, caption="The front", mark=winner)
    words = (
        "Blue points are the front: whatever else was tried and is better than one of them in one objective is worse in "
        "another. The ring is the model on this page, diamonds are the parents. Hover, tap or use the arrow keys for details."
    )
    return f'<h2>The front</h2>{drawn}<p class="ev-faint">{words}</p>{details("The same as a table", listed)}'


def results_table(published: Published) -> str:
    """The held-out results; empty where there are none."""
    results, unit = published.record.results, published.record.unit
    if results is None or not results.rows:
        return ""
    leads = {name: next((lead.measure for row in results.rows if (lead := getattr(row, name))), "") for name in _LEADS}
    heads = ["model", "accuracy", f"fitness ({unit})" if unit else "fitness", "evaluations"]
    heads += [f"lead in {measure}" for measure in leads.values() if measure]
    rows = [
        (
            row.model,
            *(_with_minus(text) for text in (row.accuracy_text, row.fitness_text)),
            round(row.evaluations) or "",
            *(_with_minus(str(getattr(row, name) or "")) for name, measure in leads.items() if measure),
        )
        for row in results.rows
    ]
    winner = next((at for at, row in enumerate(results.rows) if row.winner), None)
    caption = f"{results.examples} problems of the {results.split} split; ± is one standard error"
    caption += "; leads are the winner's, with intervals of 95 %" if any(leads.values()) else ""
    said = "".join(f"<li>{escape(_with_minus(sentence))}</li>" for sentence in results.verdict)
    verdict = f'<ul class="ev-verdict">{said}</ul>' if said else ""
    return "<h2>Results</h2>" + verdict + table(heads, rows, caption=caption, mark=winner)


def _with_minus(words: str) -> str:
    """The same with a proper minus before numbers, as `texts.number` has it."""
    return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", words)


def generation_view(published: Published, stage: str, at: int) -> tuple[str, str]:
    """The spread with one generation marked, and the best recipe of that generation.

    Args:
        published: The model.
        stage: The stage that is replayed.
        at: The generation, as a place among those of the stage.
    """
    trials = of_stage(published.trials, stage)
    every = published.generations(stage)
    if not every:
        return message(NO_STUDY), ""
    one = every[max(0, min(at, len(every) - 1))]
    chosen = published.winner
    here = chosen if chosen in trials else None
    levels = fitness_range([each.best for each in every if each.best] if in_steps(every) else trials, {})
    shown = (every, one.number, levels, stage, fitness_name(published.record.unit), here.generation if here else None)
    spread = responsive(partial(spread_scene, *shown)) if any(each.fitness for each in every) else ""
    spread += _about_winner(published, here=here is not None)
    if one.best is None:
        return spread, message(f"All trials of generation {one.number} failed.", "warning")
    best, name = one.best, f"Best of generation {one.number}"
    if here and here.generation == one.number:
        best, name = here, f"The published model, of generation {one.number}"
    accuracy = f", accuracy {number(best.accuracy)}" if best.accuracy is not None else ""
    so_far = f"best so far {number(one.so_far)}" if one.so_far is not None else "none on all examples so far,"
    spent = counted(round(one.evaluations), "evaluation")
    most = max(trial.examples for trial in trials)
    part = f" scored on {best.examples} of {most} examples;" if best.examples < most else ""
    title = (
        f"<h3>{name}: fitness {number(best.fitness)}{accuracy}</h3>"
        f'<p class="ev-faint">Trial {best.number};{part} {so_far} after {spent}.</p>'
    )
    if best.path:
        room = max(len(trial.path) for trial in trials)
        way = edits.Route(best.path, best.scales)
        drawn = path_picture(way, published.labels, published.layers, gated=published.gated, hops=room, listed=False)
        return spread, title + drawn
    merge = _merge_of(best.recipe)
    return spread, title + (weights_picture(merge, published.sources) if merge else "")


def _about_winner(published: Published, *, here: bool) -> str:
    """Where in the search the published model was, and why it need not be the last."""
    if (chosen := published.winner) is None:
        return ""
    where = "" if here else f" is of another stage, {STAGES.get(chosen.stage, chosen.stage)}: it"
    judged = "validation" in published.record.splits
    how = "by its score on the validation problems" if judged else "of the search"
    return f'<p class="ev-faint">The published model{escape(where)} was chosen among the best {how}.</p>'


def _merge_of(recipe: str) -> Mapping[str, Any]:
    try:
        return merge_of(Recipe.from_yaml(recipe))
    except EvoMergeError:
        return {}


def commands(published: Published) -> str:
    """How to load, rebuild and fold the model."""
    model, here = published.model, not published.on_hub
    if here and (real := (Path(model) / "config.json").resolve().parent / "config.json").is_file():
        model = str(real.parent)  # a page at home may show links to the files of the folder that it was given
    unpublished = listed([parent.label for parent in published.parents if parent.missing and not here])
    custom = ", trust_remote_code=True" if published.path else ""
    library, kind = ("transformers", "AutoModelForCausalLM") if published.base is None else ("peft", "AutoPeftModelForCausalLM")
    lines = [
        "# load it (Python)",
        f"from {library} import {kind}",
        "from transformers import AutoTokenizer",
        f'model = {kind}.from_pretrained("{model}"{custom})',
        f'tokenizer = AutoTokenizer.from_pretrained("{model}"{custom})',
        "",
    ]
    if unpublished:
        lines.append(f"# only its author can build it again: {unpublished} cannot be had from the Hub")
    else:
        lines.append(f"# build it again from its parents{'' if here else ', and compare'} (shell)")
    lines.append("pip install hf-evomerge")
    if here:
        lines.append(f"hf-evomerge merge {shlex.quote(f'{model}/recipe.yaml')} --out rebuilt")
    elif not unpublished:
        lines.append(f"hf-evomerge reproduce {model} --out rebuilt")
    if published.path:
        lines += ["", "# a plain model of the parents' architecture, for vLLM, llama.cpp and others (shell)"]
        lines.append(f"hf-evomerge fold {shlex.quote(model)} --out plain")
    return "\n".join(lines)


def licenses(published: Published) -> str:
    """The license of the model, and those of its parents when it was pushed."""
    card = published.card
    own = card.get("license_name") or card.get("license")
    own = own or ("not stated" if published.on_hub else "not published yet: push decides it from the parents' licenses")
    rows = [(published.name, "this model", own, (published.revision or "")[:12])]
    for parent in published.parents:
        license = published.record.licenses.get(parent.model) or parent.missing or "not stated here"
        rows.append((parent.model, parent.role, license, (parent.revision or "")[:12]))
    caption = "Licenses, as the models' pages stated them when this one was pushed"
    return table(("model", "what it is", "license", "revision"), rows, caption=caption, mark=0)
