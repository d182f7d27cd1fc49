"""What a published model says about itself: configuration, recipe, study and trials, read from a folder or from the Hub.

Only `config.json` must be there. Whatever else is missing or broken is left out, with a note that says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import seeing
from hops import readable
from texts import SpaceError

try:
    from hf_evomerge.recipes import limited_yaml
except ImportError:  # a Space has the file beside this one
    import limited_yaml  # type: ignore[no-redef]

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COLUMNS = ["stage", "number", "generation", "state", "fitness", "accuracy", "path", "scales", "recipe", "examples", "cost"]
_MAX_TRIALS = 50_000
_MAX_PICTURES = 100
_PICTURE = re.compile(r"images/[\w-]{1,80}\.png", re.ASCII)
_MAX_OBJECTIVES = 8
_OBJECTIVE = "objective."  # begins the names of their columns
_NO_NORM_IN_FRONT = ("olmo2", "olmo3", "exaone4")  # their layers read the stream as it is
FITNESS = "fitness"  # the first of several objectives
UNSET = (
    "No model is set. The owner of this Space sets the variable EVOMERGE_MODEL to the id of a model, such as user/model "
    "(Settings, Variables), or to a folder where the app runs at home."
)


class Example(NamedTuple):
    """A problem of the model's own task: its prompt, the right answer, and the files of its pictures."""

    prompt: str
    answer: str
    pictures: seeing.Pictures = ()

    @property
    def asked(self) -> tuple[str, seeing.Pictures]:
        """What a model is given."""
        return self.prompt, self.pictures


@dataclass(frozen=True)
class Parent:
    """One checkpoint that the model was made from.

    Attributes:
        label: Its name in pictures and tables.
        model: Repository or folder.
        revision: Commit, where it is pinned.
        role: ``parent`` or ``base``.
        missing: Why it cannot be loaded; empty where it can.
        license: As its page on the Hub says; empty where that is not known.
    """

    label: str
    model: str
    revision: str | None = None
    role: str = "parent"
    missing: str = ""
    license: str = ""


@dataclass(frozen=True)
class Trial:
    """One trial of the search; `path` and `scales` in data flow space, `parameters` in parameter space.

    `examples` is how many it was scored on; 0 where the record does not say it. `cost` is in scores of all examples. `others`
    are the values of the objectives beside the fitness.
    """

    stage: str
    number: int
    generation: int
    fitness: float | None
    accuracy: float | None = None
    path: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    recipe: str = ""
    examples: int = 0
    cost: float = 1.0
    others: Mapping[str, float] = field(default_factory=dict)

    def value(self, objective: str) -> float | None:
        """The fitness or another objective; None where there is none."""
        return self.fitness if objective == FITNESS or self.fitness is None else self.others.get(objective)


@dataclass(frozen=True)
class Objective:
    """One of several objectives: its name, and what it is measured in."""

    name: str
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Point:
    """One model that no other of the search beats in every objective.

    Attributes:
        number: What it is picked by.
        stage, trial: The trial that found it.
        search: The objectives on the search split.
        judged: The same where the results are measured; empty where it was not scored there.
        winner: Whether it is the model that the search ended with.
    """

    number: int
    stage: str
    trial: int
    search: Mapping[str, float]
    judged: Mapping[str, float]
    winner: bool


@dataclass(frozen=True)
class Published:
    """A model as its repository describes it.

    Attributes:
        model: Repository id or folder, as `from_pretrained` takes it.
        revision: The commit that was read; None for a folder.
        name: What it is called on the page.
        config: `config.json`.
        recipe_text: `recipe.yaml` as it stands; empty where there is none.
        recipe: The same, parsed.
        study: `study.json`.
        trials: The trials, in the order they were run.
        card: The metadata of the model's card.
        parents: The sources and the base.
        notes: What could not be read.
        pictures: Those of its examples, by name.
    """

    model: str
    name: str
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    notes: tuple[str, ...] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def on_hub(self) -> bool:
        """Whether the model comes from the Hub, rather than from a folder."""
        return self.revision is not None

    @property
    def sees(self) -> bool:
        """Whether the model is given pictures beside text."""
        return seeing.sees(self.config)

    @property
    def path(self) -> tuple[str, ...]:
        """The hops of the model; none where only weights were merged."""
        return readable(self.config.get("path")) if self.config.get("model_type") == "evo_merged" else ()

    @property
    def scales(self) -> tuple[float, ...]:
        """The scale of each hop."""
        scales = self.config.get("scales")
        known = tuple(value for value in map(as_float, listing(scales)) if value is not None)
        return known if len(known) == len(self.path) else (1.0,) * len(self.path)

    @property
    def sources(self) -> list[str]:
        """The names of the parents, without the base."""
        return [parent.label for parent in self.parents if parent.role == "parent"]

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each source that a path can run through; the merged model of a hybrid search is the last."""
        names = self.sources
        if self.recipe.get("merge"):
            names.append("merged")
        return tuple(names)

    @property
    def gated(self) -> bool:
        """Whether scales are gates of what hops add: they multiply the stream, and a norm stands in front of each layer."""
        type_of = mapping(self.config.get("text_config")).get("model_type")
        return self.config.get("scale_target", "stream") == "stream" and type_of not in _NO_NORM_IN_FRONT

    @property
    def mixes(self) -> int:
        """The layers of a merge whose weights can be turned up and down; 0 where there is a path or a parent is missing."""
        text = mapping(self.config.get("text_config")) or self.config
        count = text.get("num_hidden_layers", text.get("n_layer"))
        there = bool(self.parents) and not any(parent.missing for parent in self.parents)
        return (
            count if there and not self.path and self.recipe.get("merge") and isinstance(count, int) and 0 < count < 999 else 0
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The number of layers of each source, as far as the configuration says it."""
        found = [mapping(item).get("layers") for item in listing(self.config.get("sources"))]
        return tuple(count if isinstance(count, int) and 0 < count <= 4096 else 0 for count in found)

    @property
    def examples(self) -> list[Example]:
        """Problems of the model's own task."""
        return [
            Example(item["prompt"], item["answer"], tuple(self.pictures[str(name)] for name in listing(item.get("pictures"))))
            for item in self._examples
        ]

    @property
    def context(self) -> int:
        """The tokens that the model reads, its answer included; 0 where its configuration does not say it."""
        count = (mapping(self.config.get("text_config")) or self.config).get("max_position_embeddings")
        return count if isinstance(count, int) and count > 1 else 0

    @property
    def _examples(self) -> list[dict[str, Any]]:
        found = [mapping(item) for item in listing(self.study.get("examples"))]
        found = [item for item in found if isinstance(item.get("prompt"), str) and isinstance(item.get("answer"), str)]
        return [item for item in found if all(str(name) in self.pictures for name in listing(item.get("pictures")))][:24]

    @property
    def recorded(self) -> list[dict[str, str]]:
        """What the models wrote to the examples when they were tested, by label, as far as the record has it."""
        names = {"evolved": "evolved", **{f"source:{at}": label for at, label in enumerate(self.sources)}}
        names |= {parent.role: parent.label for parent in self.parents if parent.role == "base"}
        found = [mapping(item.get("answers")) for item in self._examples]
        return [{names[k]: text for k, text in texts.items() if k in names and isinstance(text, str)} for texts in found]

    @property
    def glosses(self) -> dict[str, str]:
        """What the examples say in a language that more people read, by prompt, where the record has it."""
        return {item["prompt"]: item["gloss"] for item in self._examples if isinstance(item.get("gloss"), str)}

    @property
    def about(self) -> str:
        """What the model is for, in one sentence; empty where its search did not say it."""
        about = mapping(self.study.get("settings")).get("about")
        return about[:300] if isinstance(about, str) else ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table of results."""
        return [row for row in listing(mapping(self.study.get("results")).get("rows")) if isinstance(row, dict)]

    @property
    def levels(self) -> dict[str, float]:
        """The fitness of the base and of each source on the search split."""
        return _numbers(self.study.get("levels"))

    @property
    def unit(self) -> str:
        """What the fitness is measured in; empty where that is not known."""
        unit = self.study.get("unit") or ("nats per answer" if self.task == "likelihood" else "")
        return unit[:60] if isinstance(unit, str) else ""

    @property
    def task(self) -> str:
        """The fitness task of the search."""
        return str(mapping(mapping(self.study.get("settings")).get("fitness")).get("task", ""))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What a search for several objectives looked for, the fitness first; none where there was one."""
        given = [mapping(item) for item in listing(self.study.get("objectives"))[:_MAX_OBJECTIVES]]
        found = [Objective(str(item["name"])[:40], str(item.get("unit") or "")[:60]) for item in given if item.get("name")]
        return tuple(found) if len(found) > 1 and found[0].name == FITNESS else ()

    @property
    def front(self) -> tuple[Point, ...]:
        """The models that no other of the search beats in every objective."""
        points = [mapping(item) for item in listing(mapping(self.study.get("results")).get("front"))[:_MAX_TRIALS]]
        return tuple(
            Point(
                number,
                str(item.get("stage")),
                trial,
                _numbers(item.get("search")),
                _numbers(item.get("judged")),
                item.get("winner") is True,
            )
            for item in points
            if isinstance(number := item.get("number"), int) and isinstance(trial := item.get("trial"), int)
        )

    @property
    def parent_values(self) -> dict[str, dict[str, float]]:
        """The objectives of the base and of each source on the search split."""
        return {str(name): _numbers(values) for name, values in mapping(self.study.get("parents")).items()}


def mapping(value: object) -> dict[Any, Any]:
    """A mapping, or an empty one where there is something else."""
    return value if isinstance(value, dict) else {}


def listing(value: object) -> list[Any]:
    """A list, or an empty one where there is something else."""
    return value if isinstance(value, list) else []


def _numbers(value: object) -> dict[str, float]:
    """The numbers of a mapping, by name."""
    pairs = [(str(name), as_float(item)) for name, item in mapping(value).items()]
    return {name: item for name, item in pairs if item is not None}


def as_float(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 else None


def settings(folder: Path) -> tuple[str, str | None]:
    """The model and the revision that the owner has set: by variables, or by `space.json` beside the app."""
    given: Any = {}
    if (file := folder / "space.json").is_file():
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            given = {}
    given = mapping(given)
    model = os.environ.get("EVOMERGE_MODEL", "").strip() or str(given.get("model") or "").strip()
    revision = os.environ.get("EVOMERGE_REVISION", "").strip() or str(given.get("revision") or "").strip()
    return model, revision or None


def read(model: str, revision: str | None = None) -> Published:
    """Read what a published model says about itself.

    Args:
        model: A folder, or the id of a repository on the Hub.
        revision: Branch, tag or commit on the Hub; the main branch by default.

    Raises:
        SpaceError: No model is named, or it cannot be found, or it has no readable `config.json`.
    """
    if not model:
        raise SpaceError(UNSET)
    if Path(model).expanduser().is_dir():
        return _read_folder(Path(model).expanduser().resolve())
    if not _REPO_ID.fullmatch(model):
        words = "which is neither a folder here nor a repository such as user/model"
        raise SpaceError(f"EVOMERGE_MODEL is {model!r:.100}, {words}.")
    commit = _commit(model, revision)
    return _read_parts(Published(model=model, name=model, revision=commit), lambda name: _download(model, name, commit))


def _read_folder(folder: Path) -> Published:
    """Read a model's folder, or that of a finished search, whose model is in `model/` and whose record is made on the way."""
    search = not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file()
    model = folder / "model" if search else folder
    with tempfile.TemporaryDirectory() as record:
        if search:
            _write_record(folder, record)
        places = [Path(record), model]
        found = Published(model=str(model), name=folder.name)
        return _read_parts(found, lambda name: next((place / name for place in places if (place / name).is_file()), None))


def _write_record(search: Path, record: str) -> None:
    """The record of a search that is not published, where the package is there to make it."""
    try:
        from hf_evomerge.hub.record import write_record
    except ImportError:
        return
    for examples in (6, 0):  # the data that examples come from may have moved since the search
        with contextlib.suppress(Exception):  # the page is there without it, and says that there is no record
            write_record(search, record, examples=examples)
            return


def _commit(model: str, revision: str | None) -> str:
    """The commit that a revision stands for now, so that weights and record are of the same one."""
    file = _download(model, "config.json", revision)
    if file is None:
        raise SpaceError(f"{model} has no config.json; it is not a model that can be loaded.")
    return file.parent.name  # the cache's folder of a snapshot is named by its commit


def _download(model: str, name: str, revision: str | None) -> Path | None:
    """A file of a repository, or None where the repository has no such file."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except errors.LocalEntryNotFoundError as cause:
        raise SpaceError(f"The Hub cannot be reached to read {model}. Please try again later.") from cause
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as cause:
        raise SpaceError(f"{model} is gated: the owner of this Space must give it a token (secret HF_TOKEN).") from cause
    except errors.RevisionNotFoundError as cause:
        raise SpaceError(f"{model} has no revision {revision!r:.60}; see the variable EVOMERGE_REVISION.") from cause
    except errors.RepositoryNotFoundError as cause:
        raise SpaceError(f"There is no public model {model} on the Hub; see the variable EVOMERGE_MODEL.") from cause
    except (errors.HfHubHTTPError, OSError) as cause:
        raise SpaceError(f"{name} of {model} could not be read from the Hub ({type(cause).__name__}).") from cause


def _read_parts(found: Published, fetch: Callable[[str], Path | None]) -> Published:
    notes: list[str] = []

    def part(name: str, reader: Callable[[Path], Any], default: Any) -> Any:
        try:
            file = fetch(name)
            return default if file is None else reader(file)
        except SpaceError as error:
            notes.append(str(error))
        except Exception as error:  # a broken file of somebody else's must not take the page down
            notes.append(f"{name} cannot be read and is left out ({type(error).__name__}).")
        return default

    config = part("config.json", _json, None)
    if not isinstance(config, dict):
        raise SpaceError(f"{found.name}: config.json is missing or cannot be read.")
    text = part("recipe.yaml", limited_yaml.read_limited, "")
    recipe = part("recipe.yaml", lambda file: parse_recipe(text), {}) if text else {}
    study = part("study.json", _json, {})
    found = replace(
        found,
        config=config,
        recipe_text=text,
        recipe=recipe,
        study=mapping(study),
        trials=part("trials.parquet", _trials, ()),
        card=part("README.md", _front_matter, {}),
    )
    names = [name for item in listing(found.study.get("examples")) for name in listing(mapping(item).get("pictures"))]
    names = [name for name in names if isinstance(name, str) and _PICTURE.fullmatch(name)][:_MAX_PICTURES]
    shown = {name: part(name, _picture, None) for name in names}
    found = replace(found, pictures={name: data for name, data in shown.items() if data is not None})
    if config.get("model_type") == "evo_merged" and not found.path:
        notes.append("The path in config.json cannot be read and is left out.")
    return replace(found, parents=_parents(found), notes=tuple(dict.fromkeys(notes)))


def _picture(file: Path) -> bytes:
    with file.open("rb") as opened:
        return seeing.checked([opened.read(seeing.MAX_BYTES + 1)])[0]


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def parse_recipe(text: str) -> dict[str, Any]:
    """A recipe as plain data. Hops are text: YAML 1.1 would read an unquoted ``1:30`` as a number of base 60."""
    return mapping(limited_yaml.load_limited(text))


def _front_matter(file: Path) -> dict[str, Any]:
    text = limited_yaml.read_limited(file)
    parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
    return mapping(limited_yaml.load_limited(parts[1])) if len(parts) == 3 and not parts[0].strip() else {}


def _trials(file: Path) -> tuple[Trial, ...]:
    import pyarrow.parquet as parquet

    there = parquet.read_schema(file).names
    others = [name for name in there if name.startswith(_OBJECTIVE)][:_MAX_OBJECTIVES]
    table = parquet.read_table(file, columns=[*(name for name in _COLUMNS if name in there), *others])
    return tuple(_trial(row) for row in table.slice(0, _MAX_TRIALS).to_pylist())


def _trial(row: Mapping[str, Any]) -> Trial:
    path, scales = readable(row.get("path")), listing(row.get("scales"))
    known = row.get("state") == "COMPLETE"
    return Trial(
        stage=str(row.get("stage")),
        number=int(row.get("number") or 0),
        generation=int(row.get("generation") or 0),
        fitness=as_float(row.get("fitness")) if known else None,
        accuracy=as_float(row.get("accuracy")),
        path=path,
        scales=tuple(map(float, scales)) if len(scales) == len(path) else (1.0,) * len(path),
        recipe="" if path else str(row.get("recipe") or ""),
        examples=int(row.get("examples") or 0),
        cost=max(as_float(row.get("cost", 1.0)) or 0.0, 0.0),
        others=_numbers({key.removeprefix(_OBJECTIVE): row[key] for key in row if key.startswith(_OBJECTIVE)}),
    )


def _parents(found: Published) -> tuple[Parent, ...]:
    """The sources of the recipe and its base; where there is no recipe, the sources of the configuration."""
    listed = found.recipe.get("sources") or (found.config.get("sources") if found.path else None)
    sources = [item for item in listing(listed) if mapping(item).get("model")]
    parents = [_parent(item, "parent", found.on_hub) for item in sources]
    base = found.recipe.get("base")
    if isinstance(base, dict) and base.get("model"):
        parents.append(_parent(base, "base", found.on_hub))
    names, labels = mapping(found.study.get("names")), [parent.label for parent in parents]
    seen = {"evolved": 1}  # the API's name of the model itself
    for at, parent in enumerate(parents):
        told = names.get("base" if parent.role == "base" else f"source:{at}")
        if isinstance(told, str) and labels.count(parent.label) > 1:
            parents[at] = replace(parent, label=told)
    for at, parent in enumerate(parents):  # two users may have given their models one name
        seen[parent.label] = seen.get(parent.label, 0) + 1
        if seen[parent.label] > 1:
            parents[at] = replace(parent, label=f"{parent.label} ({seen[parent.label]})")
    return tuple(parents)


def _parent(item: Mapping[str, Any], role: str, on_hub: bool) -> Parent:
    model, revision = str(item["model"]), item.get("revision")
    label = model.rstrip("/").rsplit("/", 1)[-1] or model
    missing = ""
    if not on_hub and Path(model).is_dir():
        revision = None
    elif not _REPO_ID.fullmatch(model):
        missing = "not published: it was a folder on the machine of the search"
        model = label
    return Parent(label=label, model=model, revision=str(revision) if revision else None, role=role, missing=missing)


def with_licenses(found: Published) -> Published:
    """The same with the parents' licenses, as far as the Hub tells them; never fails."""
    from huggingface_hub import HfApi

    api = HfApi()

    def license(parent: Parent) -> str:
        if parent.missing or not _REPO_ID.fullmatch(parent.model):
            return ""
        try:
            card = api.model_info(parent.model, revision=parent.revision, timeout=5).card_data
        except Exception:  # a courtesy: the page is complete without it
            return ""
        return "" if card is None else str(card.get("license_name") or card.get("license") or "")

    return replace(found, parents=tuple(replace(parent, license=license(parent)) for parent in found.parents))
