"""Published model as it describes itself: configuration, recipe, study and trials. Read by
`reading.py`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import seeing

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.fitness import Example, JudgingTask, Task, make_task, parse_task
from hf_evomerge.fitness.pictures import sees
from hf_evomerge.fitness.tasks.writing import WritingTask
from hf_evomerge.fitness.text.answers import RegexExtract
from hf_evomerge.pictures.trials import FITNESS, DrawnTrial, Metric, Moment, climb, of_stage, stages
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.recipes.recipe import Recipe, SourceRef
from hf_evomerge.record import EVOLVED, Data, Problem, Record

MAX_OBJECTIVES = 8
MAX_EXAMPLES = 50  # that a changed model is scored on
TO_TRY = 5  # that every model answers before anybody asks
_NO_NORM_IN_FRONT = ("olmo2", "olmo3", "exaone4")  # their layers read the stream as it is
MAX_HOP_TEXT = 400
MAX_SCORED = 64  # tokens of an answer that is scored


@dataclass(frozen=True)
class PublishedParent:
    """Checkpoint that the model was made from.

    Attributes:
        label: Its name in pictures and tables.
        model, revision: Repository or folder, and the commit where it is pinned.
        role: ``parent`` or ``base``.
        missing: Why it cannot be loaded; empty where it can.
        adapter: The repository or folder of the LoRA adapter that makes it of the published
            adapter's base, and its commit.
    """

    label: str
    model: str
    revision: str | None = None
    role: str = "parent"
    missing: str = ""
    adapter: tuple[str, str | None] | None = None


@dataclass(frozen=True)
class Published:
    """A model as its repository describes it.

    Attributes:
        model, revision: Repository and the commit that was read, or a folder and None.
        name: What it is called on the page.
        config: `config.json`; of an adapter its base's.
        base: The base, where the model is a LoRA adapter of it.
        recipe_text, recipe: `recipe.yaml` as it stands, and parsed; empty and None where there is
            none, or it cannot be read.
        record: The record of its search; an empty one where there is none, or it cannot be read.
        trials: The trials, in the order they were run.
        card: The metadata of the model's card.
        parents: The sources and the base.
        notes: What could not be read.
        pictures: The pictures of its examples, by name.
    """

    model: str
    name: str
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    base: SourceRef | None = None
    recipe_text: str = ""
    recipe: Recipe | None = None
    record: Record = field(default_factory=Record)
    trials: tuple[DrawnTrial, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[PublishedParent, ...] = ()
    notes: tuple[str, ...] = ()
    pictures: Mapping[str, seeing.Pictures] = field(default_factory=dict)

    @property
    def on_hub(self) -> bool:
        """True where the model comes from the Hub, rather than from a folder."""
        return self.revision is not None

    @property
    def title(self) -> str:
        """Name of the model: its repository's; of a folder here, whose name says little, none."""
        return self.name.rsplit("/", 1)[-1] if self.on_hub else "the merge"

    @property
    def sees(self) -> bool:
        """True where the model is given pictures beside text."""
        return sees(self.config)

    @property
    def path(self) -> tuple[str, ...]:
        """The hops of the model; none where only weights were merged."""
        has_path = self.config.get("model_type") == "evo_merged"
        return readable(self.config.get("path")) if has_path else ()

    @property
    def scales(self) -> tuple[float, ...]:
        """The scale of each hop."""
        scales = map(as_float, listing(self.config.get("scales")))
        known = tuple(value for value in scales if value is not None)
        return known if len(known) == len(self.path) else (1.0,) * len(self.path)

    @property
    def sources(self) -> list[str]:
        """The names of the parents, without the base."""
        return [parent.label for parent in self.parents if parent.role == "parent"]

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each source that a path can run through; the merged model of a hybrid search
        is the last."""
        return (*self.sources, *(["merged"] if self.merge else []))

    @cached_property
    def merge(self) -> dict[str, Any]:
        """The recipe's merge of weights, as plain data; empty where there is none."""
        return merge_of(self.recipe)

    @property
    def sources_of_config(self) -> list[SourceRef]:
        """The sources that the configuration names."""
        named = [mapping(item) for item in listing(self.config.get("sources"))]
        return [
            SourceRef(
                model=item["model"],
                revision=item["revision"] if isinstance(item.get("revision"), str) else None,
            )
            for item in named
            if isinstance(item.get("model"), str) and item["model"]
        ]

    @property
    def _text(self) -> Mapping[str, Any]:
        """The configuration of its language part."""
        return mapping(self.config.get("text_config")) or self.config

    @property
    def gated(self) -> bool:
        """True where scales are gates of what hops add: they multiply the stream, and a norm stands
        in front of each layer."""
        type_of = mapping(self.config.get("text_config")).get("model_type")
        return (
            self.config.get("scale_target", "stream") == "stream"
            and type_of not in _NO_NORM_IN_FRONT
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The number of layers of each source, as far as the configuration says it."""
        found = [mapping(item).get("layers") for item in listing(self.config.get("sources"))]
        return tuple(
            count if isinstance(count, int) and 0 < count <= 4096 else 0 for count in found
        )

    @cached_property
    def winner(self) -> DrawnTrial | None:
        """The trial that found the model; None where the record does not tell it."""
        row = self.record.winner
        there = of_stage(self.trials, row.stage) if row is not None else []
        return next((trial for trial in there if trial.number == self.record.trial), None)

    @property
    def finder(self) -> str:
        """The kind of search that found the model, in a word: evolution, where the record has a
        stage of one."""
        return (
            "evolution"
            if {stage.algorithm for stage in self.record.stages} & {"cma", "nsga2"}
            else "the search"
        )

    @property
    def prompts(self) -> Data | None:
        """Data by which the search prompted the models; None where that is not known."""
        return self.record.data if self.record.settings.data else None

    @cached_property
    def problems(self) -> list[Problem]:
        """The published examples whose pictures are there; first the one that tells the model from
        the others."""
        read = self.pictures.keys()
        there = [each for each in self.record.examples if read >= set(each.pictures)]
        telling = self.record.telling
        return sorted(there[:MAX_EXAMPLES], key=lambda each: each is not telling)

    @cached_property
    def examples(self) -> list[Example]:
        """Problems of the model's own task."""
        examples = []
        for each in self.problems:
            shown = tuple(one for name in each.pictures for one in self.pictures[name])
            examples.append(Example(each.prompt, each.answer, pictures=shown, gloss=each.gloss))
        return examples

    def problem(self, prompt: object) -> Example | None:
        """The problem of an edited model: the example with this prompt; else the first, where
        answers are judged."""
        given = [example for example in self.examples if example.prompt == prompt]
        return next(iter(given or (self.examples if self.judge is not None else [])), None)

    @cached_property
    def task(self) -> Task | None:
        """The fitness task of the search, without its check of languages; None where it is the
        searcher's own, or damaged."""
        try:
            task = make_task(parse_task(self.record.settings.fitness.to_json()))
        except EvoMergeError:
            return None
        if isinstance(task, WritingTask):
            most = min(task.spec.max_new_tokens, MAX_SCORED)
            task.spec = task.spec.model_copy(update={"language": None, "max_new_tokens": most})
        return task

    @property
    def judge(self) -> Callable[[str, Example], bool] | None:
        """The rule by which the search tells a right answer; None where its task has none for
        texts.

        A regular expression of somebody's record is not run: it can take for ever.
        """
        by_regex = isinstance(
            getattr(getattr(self.task, "spec", None), "extract", None), RegexExtract
        )
        return self.task.judge if isinstance(self.task, JudgingTask) and not by_regex else None

    @property
    def context(self) -> int:
        """The tokens that the model reads, its answer included; 0 where its configuration does not
        say it."""
        count = self._text.get("max_position_embeddings")
        return count if isinstance(count, int) and count > 1 else 0

    @cached_property
    def labels_of_record(self) -> dict[str, str]:
        """Names of the models on the page, by their names in the record."""
        names = {parent.role: parent.label for parent in self.parents}
        names |= {f"source:{at}": label for at, label in enumerate(self.sources)}
        return names | {EVOLVED: EVOLVED}

    @property
    def recorded(self) -> list[dict[str, str]]:
        """Texts that the models wrote to the examples when they were tested, by label, as far as
        the record has them."""
        names = self.labels_of_record
        texts = []
        for each in self.problems:
            texts.append({names[key]: text for key, text in each.answers.items() if key in names})
        return texts

    @property
    def tested_on(self) -> str:
        """The problems of the results, in words."""
        split = self.record.results.split if self.record.results is not None else "test"
        return "unseen problems" if split == "test" else f"{split} problems"

    def solved(self, key: str) -> tuple[int, int, str] | None:
        """Count the problems that a model solved when it was tested, of how many, and which; None
        where that is not known."""
        results = self.record.results
        row = self.record.winner
        if key != EVOLVED:
            names = self.labels_of_record
            own = (each for each in self.record.rows if names.get(each.label) == key)
            row = next(own, None)
        if row is None or row.accuracy is None or results is None or not results.examples:
            return None
        return round(row.accuracy * results.examples), results.examples, self.tested_on

    # The film shows how the best so far changed. It is of the winner's stage; where that has two
    # moments or fewer, of the stage with most.
    @cached_property
    def film(self) -> tuple[str, list[Moment]]:
        """The stage that is replayed, and the moments at which it got better: the winner's, unless
        another moves more."""
        order = stages(self.trials)
        films = {stage: climb(of_stage(self.trials, stage), winner=self.winner) for stage in order}
        own = self.winner.stage if self.winner is not None else "".join(order[-1:])
        return max(
            films.items(),
            key=lambda each: (each[0] == own and len(each[1]) > 2, len(each[1])),
            default=("", []),
        )

    @property
    def objectives(self) -> list[Metric]:
        """Objectives of a search for several, the fitness first; none where there was one."""
        given = self.record.objectives[:MAX_OBJECTIVES]
        return given if len(given) > 1 and given[0].name == FITNESS else []


def mapping(value: object) -> dict[Any, Any]:
    """A mapping, or an empty one where there is something else."""
    return value if isinstance(value, dict) else {}


def listing(value: object) -> list[Any]:
    """A list, or an empty one where there is something else."""
    return value if isinstance(value, list) else []


def as_float(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 else None


def merge_of(recipe: Recipe | None) -> dict[str, Any]:
    """A recipe's merge of weights as plain data; empty where there is none."""
    return (
        {} if recipe is None or recipe.merge is None else recipe.merge.model_dump(exclude_none=True)
    )


def readable(path: object) -> tuple[str, ...]:
    """The hops of a path as a repository has it; none where one of them cannot be read."""
    if not isinstance(path, list):
        return ()
    hops = tuple(_hop(text) if isinstance(text, str) else "" for text in path)
    return hops if all(hops) else ()


@lru_cache(10_000)  # thousands of trials share the hops of a few layers
def _hop(text: str) -> str:
    """Write one hop as recipes do; empty where it is none, or several."""
    try:
        hops = LayerPath.parse([text]).as_text() if len(text) <= MAX_HOP_TEXT else []
    except EvoMergeError:
        return ""
    return hops[0] if len(hops) == 1 else ""
