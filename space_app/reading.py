"""Reads what a published model says about itself, from a folder or from the Hub.

Only `config.json` must be there. Whatever else is missing or broken is left out, with a note that
says so.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import seeing
from published import (
    MAX_OBJECTIVES,
    Published,
    PublishedParent,
    as_float,
    listing,
    mapping,
    readable,
)
from texts import SpaceError

from hf_evomerge.checkpoints.open import config_name
from hf_evomerge.errors import EvoMergeError, one_line
from hf_evomerge.pictures.trials import DrawnTrial
from hf_evomerge.recipes.limited_yaml import load_limited, read_limited
from hf_evomerge.recipes.recipe import Recipe, SourceRef, labels_of, with_optional
from hf_evomerge.record import EVOLVED, MAX_TRIALS, STUDY_JSON, Record

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COLUMNS = [
    "stage",
    "number",
    "generation",
    "state",
    "fitness",
    "accuracy",
    "examples",
    "evaluations",
]
_COLUMNS += ["recipe", "path", "scales"]
_MAX_PICTURES = 100
# bytes of the trials: a few kilobytes of Parquet can say one text a million times
_MOST_READ = 256 << 20
_PICTURE = re.compile(r"images/[\w-]{1,80}\.png", re.ASCII)
_OBJECTIVE = "objective."  # begins the names of their columns
UNSET = (
    "No model is set. The owner of this Space sets the variable EVOMERGE_MODEL to the id of "
    "a model, such as user/model "
    "(Settings, Variables), or to a folder where the app runs at home."
)


def settings(folder: Path) -> tuple[str, str | None]:
    """The model and the revision that the owner has set: by variables, or by `space.json` beside
    the app."""
    given = {}
    with suppress(OSError, ValueError):  # no file, or one that cannot be read
        given = mapping(_json(folder / "space.json"))
    model = os.environ.get("EVOMERGE_MODEL", "").strip() or str(given.get("model") or "").strip()
    revision = (
        os.environ.get("EVOMERGE_REVISION", "").strip() or str(given.get("revision") or "").strip()
    )
    return model, revision or None


def read(model: str, revision: str | None = None) -> Published:
    """Read what a model in a folder, or at a branch, tag or commit on the Hub, says about itself.

    Raises:
        SpaceError: No model is named, or it cannot be found, or neither it nor its base has a
            readable `config.json`.
    """
    if not model:
        raise SpaceError(UNSET)
    if Path(model).expanduser().is_dir():
        folder = Path(model).expanduser().resolve()
        # `hf-evomerge space STUDY` gives a folder of links to the model's files and of the record
        config = folder / config_name(folder)
        own = config.resolve().parent if config.resolve().name == config.name else folder
        found = Published(model=str(own), name=folder.name)
        return _read_parts(found, lambda name: folder / name if (folder / name).is_file() else None)
    if not _REPO_ID.fullmatch(model):
        words = "which is neither a folder here nor a repository such as user/model"
        raise SpaceError(f"EVOMERGE_MODEL is {model!r:.100}, {words}.")
    file = _download(model, "config.json", revision) or _download(
        model, "adapter_config.json", revision
    )
    if file is None:
        raise SpaceError(f"{model} has no config.json; it is not a model that can be loaded.")
    # of the cache's folder of a snapshot: weights and record are of the same one
    commit = file.parent.name
    return _read_parts(
        Published(model=model, name=model, revision=commit),
        lambda name: _download(model, name, commit),
    )


def _download(model: str, name: str, revision: str | None) -> Path | None:
    """A file of a repository, or None where the repository has no such file."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except errors.LocalEntryNotFoundError as cause:
        raise SpaceError(
            f"The Hub cannot be reached to read {model}. Please try again later."
        ) from cause
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as cause:
        raise SpaceError(
            f"{model} is gated: the owner of this Space must give it a token (secret HF_TOKEN)."
        ) from cause
    except errors.RevisionNotFoundError as cause:
        raise SpaceError(
            f"{model} has no revision {revision!r:.60}; see the variable EVOMERGE_REVISION."
        ) from cause
    except errors.RepositoryNotFoundError as cause:
        raise SpaceError(
            f"There is no public model {model} on the Hub; see the variable EVOMERGE_MODEL."
        ) from cause
    except (errors.HfHubHTTPError, OSError) as cause:
        raise SpaceError(
            f"{name} of {model} could not be read from the Hub ({type(cause).__name__})."
        ) from cause


def _read_parts(found: Published, fetch: Callable[[str], Path | None]) -> Published:
    notes = []

    def part(
        name: str, reader: Callable[[Path], Any], default: Any, of: SourceRef | None = None
    ) -> Any:
        try:
            file = fetch(name) if of is None else _file_of(of, name, found.on_hub)
            return default if file is None else reader(file)
        except SpaceError as error:
            notes.append(str(error))
        except EvoMergeError as error:
            notes.append(
                f"{name} cannot be read and is left out: {one_line(error.__cause__ or error)}."
            )
        except Exception as error:  # a broken file of somebody else's must not take the page down
            notes.append(f"{name} cannot be read and is left out ({type(error).__name__}).")
        return default

    config = part("config.json", _json, None)
    base = None
    if config is None and (base := part("adapter_config.json", _base, None)) is not None:
        config = part("config.json", _json, None, of=base)
    if not isinstance(config, dict):
        missing = f"{found.name}: config.json is missing or cannot be read."
        raise SpaceError(" ".join([missing, *notes]))
    text = part("recipe.yaml", read_limited, "")
    recipe = part("recipe.yaml", lambda file: Recipe.from_yaml(text), None) if text else None
    found = replace(
        found,
        config=config,
        base=base,
        recipe_text=text,
        recipe=recipe,
        record=part(STUDY_JSON, Record.load, Record()),
        trials=part("trials.parquet", _trials, ()),
        card=part("README.md", _front_matter, {}),
    )
    names = [
        name for each in found.record.examples for name in each.pictures if _PICTURE.fullmatch(name)
    ][:_MAX_PICTURES]
    shown = {name: part(name, _picture, ()) for name in names}
    found = replace(
        found, pictures={name: pictures for name, pictures in shown.items() if pictures}
    )
    if config.get("model_type") == "evo_merged" and not found.path:
        notes.append("The path in config.json cannot be read and is left out.")
    return replace(found, parents=_parents(found), notes=tuple(dict.fromkeys(notes)))


def _picture(file: Path) -> seeing.Pictures:
    with file.open("rb") as opened:
        return seeing.checked([opened.read(seeing.MAX_BYTES + 1)])


def _base(file: Path) -> SourceRef:
    settings = mapping(_json(file))
    if settings.get("layer_replication"):
        raise SpaceError("This adapter moves layers of its base, which this Space cannot show.")
    return SourceRef(model=settings["base_model_name_or_path"], revision=settings.get("revision"))


def _file_of(ref: SourceRef, name: str, on_hub: bool) -> Path | None:
    """A file of an adapter's base: of a published one from the Hub, whatever folder it names."""
    if not on_hub and Path(ref.model).is_dir():
        return Path(ref.model) / name
    return _download(ref.model, name, ref.revision) if _REPO_ID.fullmatch(ref.model) else None


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _front_matter(file: Path) -> dict[str, Any]:
    text = read_limited(file)
    parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
    return mapping(load_limited(parts[1])) if len(parts) == 3 and not parts[0].strip() else {}


def _trials(file: Path) -> tuple[DrawnTrial, ...]:
    import pyarrow.parquet as parquet

    found = list[DrawnTrial]()
    opened = parquet.ParquetFile(file)
    there = opened.schema_arrow.names
    groups = opened.metadata.to_dict()["row_groups"]
    others = [name for name in there if name.startswith(_OBJECTIVE)][:MAX_OBJECTIVES]
    columns = [*(name for name in _COLUMNS if name in there), *others]
    parts = [
        part
        for group in groups
        for part in group["columns"]
        if part["path_in_schema"].partition(".")[0] in columns
    ]
    size = sum(part["total_uncompressed_size"] for part in parts)
    for batch in opened.iter_batches(8, columns=columns) if size <= _MOST_READ else ():
        found += map(_trial, rows := batch.to_pylist())
        size += len(str(rows))  # a dictionary is counted once by `nbytes`, whatever its rows hold
        if len(found) >= MAX_TRIALS or size > _MOST_READ:
            break
    if size > _MOST_READ:
        raise SpaceError(f"trials.parquet holds more than {_MOST_READ >> 20} MiB and is left out.")
    return tuple(found[:MAX_TRIALS])


def _trial(row: Mapping[str, Any]) -> DrawnTrial:
    path = readable(row.get("path"))
    scales = listing(row.get("scales"))
    others = {
        key.removeprefix(_OBJECTIVE): as_float(row[key])
        for key in row
        if key.startswith(_OBJECTIVE)
    }
    known = row.get("state") == "COMPLETE"
    return DrawnTrial(
        stage=str(row.get("stage")),
        number=int(row.get("number") or 0),
        generation=int(row.get("generation") or 0),
        fitness=as_float(row.get("fitness")) if known else None,
        accuracy=as_float(row.get("accuracy")),
        path=path,
        scales=tuple(map(float, scales)) if len(scales) == len(path) else (1.0,) * len(path),
        recipe="" if path else str(row.get("recipe") or ""),
        examples=int(row.get("examples") or 0),
        cost=max(as_float(row.get("evaluations", 1.0)) or 0.0, 0.0),
        others={name: value for name, value in others.items() if value is not None},
    )


def _parents(found: Published) -> tuple[PublishedParent, ...]:
    """The sources of the recipe and its base; where there is no recipe, the sources of the
    configuration."""
    sources = found.sources_of_config if found.path else []
    base = None
    if found.recipe is not None:
        sources = found.recipe.sources
        base = found.recipe.base
    refs = with_optional(sources, base)
    keys = [*(f"source:{at}" for at in range(len(sources))), "base"]
    own = [ref.label for ref in refs]
    alone = labels_of([ref.model_copy(update={"revision": None}) for ref in refs])
    labels = [
        found.record.names.get(key, label) if own.count(ref.label) > 1 else label
        for key, ref, label in zip(keys, refs, alone, strict=False)
    ]
    return tuple(
        _parent(ref, label, "base" if ref is base else "parent", found)
        for ref, label in zip(refs, labels, strict=True)
    )


def _parent(ref: SourceRef, label: str, role: str, found: Published) -> PublishedParent:
    model = ref.model
    revision = ref.revision
    missing = ""
    label = label if label != EVOLVED else f"{label} (2)"
    adapts = found.base is not None and ref.model == found.base.model and ref.adapter is not None
    if adapts and ref.adapter is not None and (not found.on_hub or _REPO_ID.fullmatch(ref.adapter)):
        return PublishedParent(
            label, model, revision, role, adapter=(ref.adapter, ref.adapter_revision)
        )
    if not found.on_hub and Path(model).is_dir():
        revision = None
    elif not _REPO_ID.fullmatch(model):
        missing = "not published: it was a folder on the machine of the search"
        model = label
    if ref.adapter is not None:
        missing = missing or "a LoRA adapter, which is not loaded here"
    return PublishedParent(label=label, model=model, revision=revision, role=role, missing=missing)
