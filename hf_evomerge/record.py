"""The record of a search, as it stands beside a published model: the classes of ``study.json``, and
its limits.

The search's results, the card, the Space and the Hub's figures share them. The file may be a
stranger's: what exceeds a limit is refused in one line, and keys that are not named here are
ignored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from .errors import EvoMergeError, HubError
from .fitness.comparison import Comparison
from .fitness.scores import Scores, plus_minus
from .pictures import trials
from .recipes.stage_names import StageName
from .recipes.strict_yaml import Index, StrictModel, validate

STUDY_JSON = "study.json"
MADE_WITH = (
    "Evolved with [hf_evomerge](https://pypi.org/project/hf-evomerge/). Make your own: "
    "`pip install hf-evomerge`, then "
    "`hf-evomerge init MODEL MODEL --base BASE --data problems.jsonl`."
)
EVOLVED = "evolved"  # the model itself, among those that answer
MAX_BYTES = 64 << 20
MAX_TRIALS = 50_000  # and as many models in a front
Name = Annotated[str, Field(max_length=300)]
Text = Annotated[str, Field(max_length=100_000)]
Number = Annotated[float, Field(gt=-1e300, lt=1e300)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Values = Annotated[dict[Name, Number], Field(max_length=1000)]


class Part(StrictModel):
    """A part of a record. It ignores keys that it does not know."""

    model_config = ConfigDict(extra="ignore")

    @classmethod
    def load(cls, file: str | Path, error: type[EvoMergeError] = HubError) -> Self:
        """Read JSON within the limits; raises `error` with one line that says what is wrong."""
        try:
            with Path(file).open("rb") as stream:
                text = stream.read(MAX_BYTES + 1)
            if len(text) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
            data = json.loads(text)
            if not isinstance(data, dict):
                raise ValueError("not a JSON object")
            return validate(cls, data, error)
        except (OSError, ValueError, RecursionError, error) as cause:
            raise error(f"{file}: cannot be read: {cause}") from cause

    def to_json(self) -> dict[str, Any]:
        """Return what was given, as plain data."""
        return self.model_dump(mode="json", exclude_unset=True)


class OpenPart(Part):
    """A part of the search's settings. It keeps all keys, and has fields for the ones that are
    read."""

    model_config = ConfigDict(extra="allow")


class Fitness(OpenPart):
    """The settings of the fitness task, which `parse_task` takes whole."""

    task: Name = ""


class Data(OpenPart):
    """Origin of the examples of a split; see `DataSpec`."""

    jsonl: Name | None = None
    dataset: Name | None = None
    revision: Name | None = None
    lm_eval: list[Name] = Field(default_factory=list, max_length=1000)
    template: Text | None = None
    chat: bool = False
    system: Text | None = None


class Compute(OpenPart):
    """The settings of the models that were scored."""

    quantization: Name | None = None


class Settings(OpenPart):
    """The search file as it is published: a `SearchConfig` that names no folder of the searcher's
    machine."""

    about: str | None = Field(default=None, max_length=300)
    compute: Compute = Compute()
    fitness: Fitness = Fitness()
    data: dict[Name, Data] = Field(default_factory=dict, max_length=100)


class StageSummary(Part):
    """A stage of the search: what proposed its trials, how many there are, and how long their
    evaluation took."""

    stage: StageName
    algorithm: Name = "cma"
    trials: Count = 0
    failed: Count = 0
    duplicates: Count = 0
    generations: Count = 0
    seconds: Number = 0.0


class Figures(Part):
    """Figures of a model: means with standard errors, and the share of answers that were cut at the
    limit of their length."""

    fitness: Number | None = None
    fitness_se: Number | None = None
    accuracy: Number | None = None
    accuracy_se: Number | None = None
    truncated: Number | None = None

    @classmethod
    def of(cls, scores: Scores) -> Figures:
        """The figures of some scores."""
        return cls(
            fitness=scores.mean,
            fitness_se=scores.standard_error,
            accuracy=scores.accuracy,
            accuracy_se=scores.accuracy_error,
            truncated=scores.truncated_share,
        )

    @property
    def accuracy_text(self) -> str:
        """The accuracy with its standard error; empty where the task cannot tell."""
        return plus_minus(self.accuracy, self.accuracy_se)

    @property
    def fitness_text(self) -> str:
        """The fitness with its standard error, or that the evaluation failed."""
        return plus_minus(self.fitness, self.fitness_se) or "failed"

    @property
    def best_text(self) -> str:
        """The accuracy, or the fitness where there is none."""
        return self.accuracy_text or self.fitness_text


class Row(Figures):
    """Row of the table of results, for one model; the fields are explained at
    `hf_evomerge.search.results.table.Row`.

    The winner's lead over it is by the measure that tells models apart best.
    """

    stage: Name = ""
    model: Name = ""
    label: Name = ""
    retained: dict[Name, Figures] = Field(default_factory=dict, max_length=100)
    objectives: Values = Field(default_factory=dict)
    evaluations: Count | Number = 0
    seconds: Number = 0.0
    winner: bool = False
    verdict: list[Text] = Field(default_factory=list, max_length=1000)
    """The verdict on this model, where that is published and did not win."""
    doubt: Text = ""
    """The sentence that speaks against publishing this model; empty where none does."""
    lead: Comparison | None = None

    @staticmethod
    def scored(scores: Scores) -> dict[str, Any]:
        """Fields that some scores fill."""
        figures = Figures.of(scores).model_dump()
        if scores.others:
            figures["objectives"] = {name: each.mean for name, each in scores.others.items()}
        return figures


class Contribution(Part):
    """Contribution of one source to the winner: the fitness that is lost without it."""

    HEADS: ClassVar[tuple[str, ...]] = ("source", "fitness lost without it")
    source: Name
    left_out: Comparison

    @property
    def cells(self) -> tuple[str, str]:
        """Cells of its row, under `HEADS`."""
        return self.source, str(self.left_out)


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Point(trials.FrontPoint):
    """Model of the front, with its recipe's key."""

    stage: Name
    search: Values
    judged: Values
    recipe: Name = ""


class Results(Part):
    """Results of the search, measured on the examples of a split; several objectives have a
    front."""

    split: Name = "test"
    examples: Count = 0
    rows: list[Row] = Field(default_factory=list, max_length=1000)
    verdict: list[Text] = Field(default_factory=list, max_length=1000)
    front: list[Point] = Field(default_factory=list, max_length=MAX_TRIALS)
    contributions: list[Contribution] = Field(default_factory=list, max_length=1000)
    warnings: list[Text] = Field(default_factory=list, max_length=1000)

    @property
    def winner(self) -> Row | None:
        """The row of the published model."""
        return next((row for row in self.rows if row.winner), None)

    def publishing(self, stage: str) -> Results:
        """Return the results with the model of another stage's row as the published one."""
        rows = []
        verdict = self.verdict
        for row in self.rows:
            if row.stage == stage:
                verdict = row.verdict
            changed = {"winner": row.stage == stage, "lead": None}
            rows.append(row.model_copy(update=changed))
        return self.model_copy(update={"rows": rows, "verdict": verdict})


class Problem(Part):
    """A published example: pictures by file, a gloss for more readers, and by model whether it was
    right and what it wrote."""

    prompt: Text
    answer: Text
    pictures: list[Name] = Field(default_factory=list, max_length=100)
    gloss: Text = ""
    right: dict[Name, bool] = Field(default_factory=dict, max_length=1000)
    answers: dict[Name, Text] = Field(default_factory=dict, max_length=1000)


class Record(Part):
    """Content of ``study.json``."""

    format: Count = 1
    """The version of this format."""
    space: Name = ""
    """The search file."""
    seed: Index = 0
    """The search file."""
    versions: dict[Name, Name] = Field(default_factory=dict, max_length=1000)
    """The libraries that searched."""
    settings: Settings = Settings()
    """The search file."""
    splits: dict[Name, Count] = Field(default_factory=dict, max_length=100)
    """The number of examples of each split."""
    stages: list[StageSummary] = Field(default_factory=list, max_length=100)
    """The stages that have trials."""
    unit: Name = ""
    """What the fitness is measured in; empty where it has no unit."""
    names: dict[Name, Name] = Field(default_factory=dict, max_length=1000)
    """What the parents are called, by label."""
    licenses: dict[Name, Name] = Field(default_factory=dict, max_length=1000)
    """The parents' licenses when the model was pushed, by model."""
    levels: Values = Field(default_factory=dict)
    """Fitness and objectives of the parents on the search split, by name."""
    objectives: list[trials.Metric] = Field(default_factory=list, max_length=64)
    """The fitness and all others, where there are several."""
    parents: dict[Name, Values] = Field(default_factory=dict, max_length=1000)
    """Fitness and objectives of the parents on the search split, by name."""
    results: Results | None = None
    """None where the search has not ended."""
    trial: Count | None = None
    """The number of the trial that found the published model, in the stage of its row."""
    examples: list[Problem] = Field(default_factory=list, max_length=10_000)
    """Problems to try."""
    alone: Count | None = None
    """How many problems of the results only the published model solves, of all whose answers are
    compared with it."""

    @property
    def rows(self) -> list[Row]:
        """The rows of the results; none where the search has not ended."""
        return self.results.rows if self.results is not None else []

    @property
    def winner(self) -> Row | None:
        """The row of the published model."""
        return self.results.winner if self.results is not None else None

    @property
    def telling(self) -> Problem | None:
        """The first example that the model solves and the fewest others do; None where there are no
        examples."""
        return max(
            self.examples,
            key=lambda one: (one.right.get(EVOLVED, False), -sum(one.right.values())),
            default=None,
        )

    @property
    def data(self) -> Data:
        """Data that examples are taken from: the first split that the search was not shown, as far
        as there is one."""
        data = self.settings.data
        return next(
            (data[split] for split in ("test", "validation", "search") if split in data), Data()
        )

    def save(self, file: str | Path) -> None:
        """Write what was given, and no defaults."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        Path(file).write_text(text + "\n", encoding="utf-8")
