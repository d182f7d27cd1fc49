"""The model card: what a model folder, its recipe and its record say of the model, as text for its
page on the Hub.

Everything that it states is read from files; what is not there is left out or said to be missing.
The wording is in ``model_cards/model.md.jinja``.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..checkpoints.client import ask
from ..checkpoints.inside import check_size
from ..checkpoints.open import config_name
from ..errors import HubError, one_line
from ..fitness.comparison import share_interval
from ..fitness.pictures import sees
from ..lines import visible
from ..pictures.scene import listed
from ..recipes.recipe import RECIPE_FILE, Recipe, SourceRef, with_optional
from ..record import EVOLVED, MADE_WITH, STUDY_JSON, Data, Record, Results, Row
from ..search.file.stages import STAGES
from ..search.results.export import numbers
from ..search.results.verdict import RULE
from .bundled import bundled
from .licenses import LicenseDecision
from .record import IMAGES_FOLDER

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, HfApi, ModelCardData

TEMPLATE = "model.md.jinja"
TAGS = ["merge", "model-merging", "evomerge"]  # here as on the Spaces
_SPLITS = {
    "test": "held-out test problems",
    "validation": "validation problems",
    "search": "problems of the search itself",
}
_OF_FACTS = (
    "kind",
    "architecture",
    "sees",
    "task",
    "trained",
    "draws",
    "adapts",
    "images",
    "study",
    "space",
    "trials",
)
_SHARE = re.compile(r"by \d+\.\d+ of accuracy( \(-?\d+\.\d+ to -?\d+\.\d+\))?")
_UNSAFE = re.compile(r"([\\`*_{}\[\]|!])")


@dataclass(frozen=True)
class CardFacts:
    """Facts about a model, and the pictures beside it.

    Attributes:
        config: Its ``config.json``; of a pipeline its ``model_index.json``, of an adapter its
            ``adapter_config.json``.
        recipe: Its recipe, with the sources named as they are published.
        study: The record of its search; None where it comes from a recipe that nobody searched for.
        space: The Space that shows it, where one is made with it or is there already.
        trials: The data set of its search's trials, likewise.
    """

    config: dict[str, Any]
    recipe: Recipe
    study: Record | None = None
    images: tuple[str, ...] = ()
    space: str | None = None
    trials: str | None = None

    @classmethod
    def of_folder(cls, folder: str | Path) -> CardFacts:
        """Read what a model folder holds; raises `HubError` where it holds no model or no
        recipe."""
        folder = Path(folder)
        study = folder / STUDY_JSON
        if not (folder / RECIPE_FILE).is_file():
            raise HubError(
                f"{folder}: no {RECIPE_FILE} in it; only a model that was built from a "
                "recipe has such a card"
            )
        return cls(
            read_json(folder / config_name(folder)),
            Recipe.load(folder / RECIPE_FILE),
            Record.load(study) if study.is_file() else None,
            tuple(sorted(file.name for file in (folder / IMAGES_FOLDER).glob("*.png"))),
        )

    @property
    def record(self) -> Record:
        """The record of its search, or an empty one."""
        return self.study or Record()

    @property
    def kind(self) -> str:
        """``ps``, ``dfs`` or ``hybrid``, by the parts of the recipe."""
        if self.recipe.flow is None:
            return "ps"
        return "dfs" if self.recipe.merge is None else "hybrid"

    @property
    def taken(self) -> list[int]:
        """List the numbers of the sources in the model; a source of weight 0 is not in it."""
        nothing = [at for at, weights in self.weights.items() if weights == {0.0}]
        return [at for at in range(len(self.recipe.sources)) if at not in nothing]

    @property
    def weights(self) -> dict[int, set[float]]:
        """Weights of each source of a merge that has weights, by its number."""
        merge = self.recipe.merge
        if merge is None or self.recipe.flow is not None:
            return {}
        pairs = zip(self.recipe.merge_sources, merge.parameters, strict=False)
        weights = {}
        for at, values in pairs:
            if "weight" in values:
                weights[at] = {each for _, each in numbers("", values["weight"])}
        return weights

    @property
    def trained(self) -> bool:
        """True where its last source is a LoRA that the search trained."""
        winner = self.record.winner
        return winner is not None and winner.stage == "together"

    @property
    def sees(self) -> bool:
        """True where it is a model that is given pictures beside text."""
        return sees(self.config)

    @property
    def draws(self) -> bool:
        """True where it is a diffusion pipeline."""
        return "_class_name" in self.config

    @property
    def adapts(self) -> str | None:
        """The base, of an adapter."""
        return self.config.get("base_model_name_or_path")

    @property
    def by_prompt(self) -> bool:
        """True where it draws what a text says."""
        return bool(self.adapts) or any(name.startswith("tokenizer") for name in self.config)

    @property
    def task(self) -> str | None:
        """Name of the task on the Hub; None for an adapter of anything but text."""
        if self.draws:
            return "text-to-image" if self.by_prompt else "unconditional-image-generation"
        if self.adapts and self.config.get("task_type") != "CAUSAL_LM":
            return None
        return "image-text-to-text" if self.sees else "text-generation"

    @property
    def architecture(self) -> str:
        """The class of the model whose layers it runs."""
        if self.draws:
            return str(self.config["_class_name"])
        config = self.config.get("text_config", self.config) if self.kind != "ps" else self.config
        return str((config.get("architectures") or ["model"])[0])


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; raises `HubError`."""
    try:
        check_size(file)
        data = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        return data
    except (OSError, ValueError, RecursionError) as cause:
        raise HubError(f"{file}: cannot be read: {cause}") from cause


def render_card(
    facts: CardFacts, repo_id: str, license: LicenseDecision, *, languages: Sequence[str] = ()
) -> str:
    """Write the card of a model that goes to a repository: the text of ``README.md``, YAML metadata
    and Markdown.

    Languages are ISO 639 codes, for the Hub's filters.

    Raises:
        HubError: The template or the facts do not fit.
    """
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    environment.filters["cell"] = markdown_text
    try:
        template = environment.from_string(
            (bundled("model_cards") / TEMPLATE).read_text(encoding="utf-8")
        )
        body = template.render(**_values(facts, repo_id, license))
    except (jinja2.TemplateError, KeyError, TypeError) as cause:
        raise HubError(f"{TEMPLATE}: does not fit what is known of {repo_id}: {cause}") from cause
    metadata = card_metadata(facts, repo_id, license, languages).to_yaml()
    body = visible(re.sub(r"\n{3,}", "\n\n", body).strip())
    return f"---\n{metadata}\n---\n\n{body}\n"


def card_metadata(
    facts: CardFacts, repo_id: str, license: LicenseDecision, languages: Sequence[str] = ()
) -> ModelCardData:
    """The part of the card that the Hub reads. Figures are given only where they were measured on a
    test split."""
    from huggingface_hub import ModelCardData

    record = facts.record
    evaluations = _evaluations(record)
    refs = with_optional((facts.recipe.sources[at] for at in facts.taken), facts.recipe.base)
    parts = [part for ref in refs for part in ref.parts]
    parents = list(dict.fromkeys(part.model for part in parts if part.is_on_hub))
    relation = "merge" if parents else None
    library = "transformers"
    if facts.adapts:
        relation = "adapter"
        library = "peft"
    if facts.draws:
        library = "diffusers"
    return ModelCardData(
        base_model=facts.adapts or parents or None,
        base_model_relation=relation,
        library_name=library,
        pipeline_tag=facts.task,
        tags=[*TAGS, "lora"] if facts.adapts else TAGS,
        datasets=_datasets(record) or None,
        license=license.license,
        **license_terms(repo_id, license),
        language=list(languages) or None,
        model_name=repo_id.rsplit("/", 1)[-1] if evaluations else None,
        eval_results=evaluations or None,
    )


def _evaluations(record: Record) -> list[EvalResult]:
    """The winner's accuracy on the test split, where there is one, as the Hub reads it."""
    from huggingface_hub import EvalResult

    results = record.results
    if (
        results is None
        or results.split != "test"
        or results.winner is None
        or results.winner.accuracy is None
    ):
        return []
    data = record.settings.data.get("test", Data())
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data.dataset or "custom",
            dataset_name=data.dataset or ", ".join(data.lm_eval) or "examples of the search",
            dataset_revision=data.revision,
            metric_type="accuracy",
            metric_name=f"accuracy on {results.examples} held-out problems",
            metric_value=round(results.winner.accuracy, 4),
        )
    ]


def metadata_text(repo_id: str, license: LicenseDecision, languages: Sequence[str]) -> str:
    """The part of a card that is known before there is a model, for `check_metadata`."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=license.license, language=list(languages) or None, **license_terms(repo_id, license)
    )
    return f"---\n{data.to_yaml()}\n---\n"


# The Hub checks the metadata of a card when it gets a commit, after gigabytes were uploaded. Its
# own check is asked before anything is sent; before a search even, for what is known then.
def check_metadata(card: str, repo_id: str, api: HfApi, kind: str = "model") -> None:
    """Ask the Hub whether it takes a card's metadata: it would refuse the commit, after everything
    was uploaded.

    `RepoCard.validate` asks the default endpoint, which need not be this client's. Raises
    `HubError`.
    """
    from huggingface_hub.utils import get_session, hf_raise_for_status

    def check() -> list[str]:
        response = get_session().post(
            f"{api.endpoint}/api/validate-yaml", json={"content": card, "repoType": kind}
        )
        if response.status_code != 400:
            hf_raise_for_status(response)
        return [str(error.get("message")) for error in response.json().get("errors", [])]

    if complaints := ask(f"{repo_id}: the metadata of the card cannot be checked", check):
        what = f"the Hub does not take the metadata of the card: {one_line('; '.join(complaints))}"
        raise HubError(f"{repo_id}: {what}; correct --license or --language")


def license_terms(repo_id: str, license: LicenseDecision) -> dict[str, Any]:
    """Name and link of a license without an identifier, as a card has them."""
    link = f"https://huggingface.co/{repo_id}#licenses" if license.license == "other" else None
    return {"license_name": license.name, "license_link": license.link or link}


_LONG_RECIPE = 16_000  # characters that nobody reads on a page


def markdown_text(value: object) -> str:
    """Text from outside as plain text of a Markdown table: no markup, no line breaks."""
    return _UNSAFE.sub(r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


def _values(facts: CardFacts, repo_id: str, license: LicenseDecision) -> dict[str, Any]:
    recipe = facts.recipe
    record = facts.record
    results = record.results or Results()
    text = recipe.to_yaml().rstrip()
    return {
        "name": repo_id.rsplit("/", 1)[-1],
        "repo_id": repo_id,
        **{name: getattr(facts, name) for name in _OF_FACTS},
        "by_prompt": facts.draws and facts.by_prompt,
        "license": license,
        "recipe": recipe,
        "recipe_yaml": text if len(text) <= _LONG_RECIPE else "",
        # A fence of backticks must be longer than any run of them inside.
        "fence": "`" * max([3, *(1 + len(run) for run in re.findall("`+", text))]),
        "path": recipe.flow.to_path() if recipe.flow is not None else None,
        "record": record,
        "results": results,
        "split_text": _SPLITS.get(results.split, "problems"),
        "headline": _headline(facts),
        "rule": RULE if results.verdict else "",
        "rows": [_row(row) for row in results.rows],
        **_columns(results.rows),
        "stage_names": {stage: name.capitalize() for stage, name in STAGES.items()},
        "shown": record.telling if record.telling and record.telling.right else None,
        "example": _example(record, record.data),
        "prompt_form": json.dumps(record.data.template, ensure_ascii=False)
        if record.data.template
        else "",
        **_sizes(facts),
        "rank": facts.config.get("r"),
        "served_rank": served_rank(facts.config.get("r") or 1),
        **_source_values(facts),
        "made_with": MADE_WITH if facts.study else MADE_WITH.replace("Evolved", "Merged"),
        "missing_text": listed(
            [
                *dict.fromkeys(
                    markdown_text(ref.model) for ref in recipe.parents if not ref.is_on_hub
                )
            ]
        ),
    }


def _source_values(facts: CardFacts) -> dict[str, Any]:
    layers = {i: source.get("layers") for i, source in enumerate(facts.config.get("sources") or [])}
    sources = [
        {**_shown(ref), "layers": layers.get(i)} for i, ref in enumerate(facts.recipe.sources)
    ]
    names = [source["shown"] for source in sources]
    called = facts.record.names
    for i, name in enumerate(names):
        if (
            names.count(name) > 1 and f"source:{i}" in called
        ):  # folders of one name, which the results tell apart
            sources[i]["shown"] = f"{name} ({markdown_text(called[f'source:{i}'])})"
    base = facts.recipe.base
    if facts.trained:
        sources[-1]["shown"] = "a LoRA that the search trained"
    names = [source["shown"] for source in sources]
    taken = [names[at] for at in facts.taken]
    if facts.trained and base is not None and len(taken) == 1:
        taken = [_shown(base)["shown"], *taken]
    weights = [each for at, each in facts.weights.items() if at in facts.taken]
    for at, source in enumerate(sources):
        source["shown"] += "" if at in facts.taken else " (weight 0)"
    merged = (
        [names[i] for i in facts.recipe.merge_sources] if facts.recipe.merge is not None else []
    )
    return {
        "sources": sources,
        "base": _shown(base) if base is not None else None,
        "parents_text": listed(taken),
        "stands_still": facts.trained and len(set().union(*weights)) == 1,
        "merge_sources_text": listed(merged),
        "merged_layers": layers.get(len(sources)) if facts.kind == "hybrid" else None,
    }


def _shown(ref: SourceRef) -> dict[str, Any]:
    names = []
    revisions = []
    for part in ref.parts:
        name = markdown_text(part.model)
        names.append(
            f"[{name}](https://huggingface.co/{quote(part.model)})" if part.is_on_hub else name
        )
        if part.revision:
            revisions.append(f"`{part.revision[:12]}`")
        elif not part.is_on_hub:
            revisions.append("not published")
    return {
        "shown": " with adapter ".join(names),
        "revision_shown": ", ".join(dict.fromkeys(revisions)),
    }


def _sizes(facts: CardFacts) -> dict[str, Any]:
    """The size of a model of text and what it reads, as its config says, and half of that to write,
    64 tokens at most."""
    config = facts.config
    while isinstance(inner := config.get("text_config"), dict):
        config = inner
    layers = config.get("num_hidden_layers")
    context = config.get("max_position_embeddings")
    reads = context if isinstance(context, int) and context > 1 else 0
    dtype = str(facts.recipe.dtype or config.get("dtype") or "")
    said = [
        f"{layers} layers" if layers else "",
        dtype,
        f"reads up to {reads:,} tokens" if reads else "",
    ]
    return {"shape": ", ".join(filter(None, said)), "new_tokens": min(64, reads // 2 or 64)}


def served_rank(rank: int) -> int:
    """Find the least ``--max-lora-rank`` of vLLM that takes a rank; the rank itself where none
    does."""
    return next((most for most in (8, 16, 32, 64, 128, 256, 320, 512) if rank <= most), rank)


def _columns(rows: Sequence[Row]) -> dict[str, Any]:
    """The columns of the table that only some searches have: retained data, cut answers."""
    kept = [each for row in rows for each in row.retained.items()]
    retained = [f"on {name}" for name, _ in kept]
    retained += [f"on {name}, cut" for name, figures in kept if figures.truncated]
    return {
        "retained": list(dict.fromkeys(retained)),
        "has_cut": any(row.truncated for row in rows),
        "has_accuracy": any(row.accuracy is not None for row in rows),
    }


def _headline(facts: CardFacts) -> str:
    """The result in one line, in percent: the winner's own figure, its parents', and the first
    comparison, with intervals."""
    results = facts.record.results or Results()
    winner = results.winner
    count = results.examples
    words = []
    if winner is not None and winner.accuracy is not None and count:
        low, high = share_interval(round(winner.accuracy * count), count)
        split = _SPLITS.get(results.split, "problems")
        words.append(
            f"**{winner.accuracy:.1%}** of {count} {split} right ({low:.1%} to "
            f"{high:.1%}){_of_parents(facts)}."
        )
    told = results.verdict[:1]
    if winner is not None and winner.doubt:
        told = [winner.doubt]
    for first in told:
        # another measure that says the same is left to the list of results
        sentence = first.partition("; in ")[0]
        if share := _SHARE.search(sentence):
            points = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]) * 100:.1f}", share[0])
            points = points.replace("of accuracy", "percentage points")
            sentence = sentence.replace(share[0], points)
        compared = " to " in sentence
        if winner is not None:
            name = winner.model
            if winner.stage == "together":  # whose sentences leave out how it was trained
                name = name.partition(" (")[0]
            sentence = re.sub(f"^{re.escape(name)} ", "It ", sentence, flags=re.IGNORECASE)
            sentence = sentence.replace(name, "this model")
        words.append(f"{markdown_text(sentence)}.")
    if len(words) == 2 and compared:
        words.append(
            "In brackets: intervals of 95 %; the comparison is paired, problem by problem."
        )
    return " ".join(words)


def _of_parents(facts: CardFacts) -> str:
    """The accuracies of the best three parents, and of the base."""
    left_out = {f"source:{at}" for at in range(len(facts.recipe.sources)) if at not in facts.taken}
    rows = [row for row in facts.record.rows if row.label not in left_out]

    def best(stage: str) -> list[tuple[str, str]]:
        known = [row for row in rows if row.stage == stage and row.accuracy is not None]
        known.sort(key=lambda row: row.accuracy or 0, reverse=True)
        return [(markdown_text(row.model), f"{row.accuracy:.1%}") for row in known]

    parents = [" ".join(parent) for parent in best("source")]
    if len(parents) > 4:
        parents = [*parents[:3], f"{len(parents) - 3} more no better"]
    words = f"; its parents: {', '.join(parents)}" if parents else ""
    return words + "".join(f"; the {': '.join(base)}" for base in best("base"))


def _datasets(record: Record) -> list[str]:
    """The data sets of the Hub that a search looked at; a folder has no owner in its name."""
    names = [data.dataset for data in record.settings.data.values()]
    return list(dict.fromkeys(name for name in names if name and "/" in name))


def _row(row: Row) -> dict[str, str]:
    """The cells of a row, by the names of their columns; bold where it is the published model."""
    cells = {
        "model": markdown_text(row.model) + (" (this model)" if row.winner else ""),
        "accuracy": row.accuracy_text,
        "fitness": row.fitness_text,
        "evaluations": f"{row.evaluations:.0f}" if row.evaluations else "",
        "cut": "" if row.truncated is None else f"{row.truncated:.1%}",
    }
    for name, figures in row.retained.items():
        cells[f"on {name}"] = figures.best_text
        cells[f"on {name}, cut"] = f"{figures.truncated or 0:.1%}"
    bold = "**" if row.winner else ""
    return {name: f"{bold}{cell}{bold}" if cell else "" for name, cell in cells.items()}


def _example(record: Record, data: Data) -> str | None:
    """A prompt as the search gave it to the models, for the code that loads it: text, or the
    messages of a chat."""
    prompt = record.telling.prompt if record.telling and record.telling.right.get(EVOLVED) else None
    if not data.chat:
        return json.dumps(prompt, ensure_ascii=False) if prompt is not None else None
    messages = [{"role": "system", "content": data.system}] if data.system is not None else []
    return json.dumps(
        [*messages, {"role": "user", "content": "Your text" if prompt is None else prompt}],
        ensure_ascii=False,
    )
