"""Provenance of a study's scores: examples, sources, task. Taken down when it begins, and compared
when it goes on.

A branch on the Hub moves, so it is pinned to its commit when a search begins. Of files the sha256
counts; weights whose size, times and inode are those of before are not read again, so that going on
costs next to nothing.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

from ...errors import SearchError
from ...fitness import Example, FunctionTask, RewardSpec, Task
from ...recipes.recipe import SourceRef
from ..file.config import SearchConfig
from ..study.database import DamagedStudyError
from ..study.study import Study
from .evaluator import Evaluator

if TYPE_CHECKING:
    from ...checkpoints.checkpoint import Parent

Pins = dict[str, dict[str, Any]]
Files = dict[str, list[Any]]
"""The digest of each file of a source, by its name."""


def pin(config: SearchConfig, pins: Pins) -> SearchConfig:
    """The search with every repository at one commit.

    Args:
        config: The search as it was written.
        pins: What each reference was pinned to when the study began; those that are new are added.

    Raises:
        SourceError: A repository cannot be had.
    """
    from ...checkpoints.open import open_source

    def pinned(ref: SourceRef) -> SourceRef:
        if str(ref) not in pins:
            if (commit := open_source(ref).pinned) == ref:
                return ref
            pins[str(ref)] = commit.model_dump()
        return SourceRef(**pins[str(ref)])

    base = pinned(config.base) if config.base is not None else None
    return config.model_copy(
        update={"sources": [pinned(ref) for ref in config.sources], "base": base}
    )


# Scores of a study are comparable only if they stand on the same examples, the same files of the
# sources and the same task. Each is noted as a digest when the study begins and compared when it
# goes on. A file's digest is kept with its size and time, so that gigabytes are not hashed again.
def check_same_grounds(
    study: Study, evaluator: Evaluator, task_factory: Callable[[], Task] | None
) -> None:
    """Take down what a new study stands on; refuse to go on with one that stands on something else
    by now.

    Raises:
        SearchError: Examples, a source's file or the task have changed; the message names the first
            that has.
        DamagedStudyError: A study with scores does not know any more what they stand on.
    """
    from ...checkpoints.digests import digest_source
    from ...checkpoints.open import open_source

    examples = {}
    for split in evaluator.tasks.splits:
        read = evaluator.tasks.examples(split)
        text = json.dumps([_text_of(example) for example in read], default=str)
        examples[split] = [sha256(text.encode()).hexdigest()]
    _compare(study, "examples", "the {} examples", examples)
    for label, source in _sources(evaluator).items():
        _compare(
            study,
            "files",
            f"{{}} of {source}",
            digest_source(source, study.meta("files", label) or {}),
            of=label,
        )
    for spec in evaluator.config.task_specs:
        if isinstance(spec, RewardSpec) and spec.model is not None:
            known = study.meta("files", spec.model) or {}
            digests = digest_source(open_source(spec.reward_model), known)
            _compare(study, "files", f"{{}} of {spec.model}", digests, of=spec.model)
    _compare(study, "task", "the task's {}", _task(evaluator.config, task_factory))


def files(study: Study, evaluator: Evaluator) -> dict[str, Files]:
    """Return what a study notes of the files of each source."""
    return {label: study.meta("files", label) or {} for label in _sources(evaluator)}


def check_files(evaluator: Evaluator, known: Mapping[str, Files]) -> None:
    """Raise `SearchError` where the sources' files on this machine are not those that a study
    notes."""
    from ...checkpoints.digests import digest_source

    for label, source in _sources(evaluator).items():
        digests = digest_source(source, known[label])
        for name in {**known[label], **digests}:
            if digests.get(name, [None])[0] != known[label].get(name, [None])[0]:
                raise SearchError(
                    f"{source}: {name} is not what the search stands on; bring the same files there"
                )


def _sources(evaluator: Evaluator) -> dict[str, Parent]:
    sources = evaluator.sources
    opened = [*([sources.base] if sources.base is not None else []), *sources]
    return dict(zip(evaluator.config.parents, opened, strict=True))


def _compare(
    study: Study, key: str, what: str, today: Mapping[str, list[Any]], of: str = ""
) -> None:
    before = study.meta(key, of)
    if before is None and study.has_scores:
        raise DamagedStudyError(study.folder, f"{key}{f' of {of}' if of else ''} (lost)")
    for name in [*(before or ()), *today] if before is not None else ():
        was, now = (values.get(name, [None])[0] for values in (before, today))
        if was != now and study.has_scores:
            how = f"version {was}, now {now}" if isinstance(now, int) else "changed"
            if name not in today:
                how = "lost"
            elif name not in before:
                how = "new"
            raise SearchError(
                f"{study.folder}: {what.format(name)} ({how}) are not what this study was "
                "begun on, and scores would not be "
                "comparable; restore them, or choose another folder"
            )
    if before != today:
        study.set_meta(key, today, of)


def _text_of(example: Example) -> list[Any]:
    return [
        example.prompt,
        example.answer,
        example.chat,
        example.system,
        *example.choices,
        *(picture.digest for picture in example.pictures),
        *filter(None, [example.head, example.source]),
        *([example.weight] if example.weight != 1.0 else []),
        *([dict(example.columns)] if example.columns else []),
    ]


def _task(config: SearchConfig, task_factory: Callable[[], Task] | None) -> dict[str, list[Any]]:
    """Version of each registered task's scores; digests of the text of a user's function or class,
    and of task files."""
    specs: list[Any] = [config.fitness, *config.task_specs]
    parts: dict[str, Any] = {f"scores of {spec.task}": spec.scores_version for spec in specs}
    if task_factory is not None and isinstance(task := task_factory(), FunctionTask):
        parts["function"] = _text(task.function)
    elif task_factory is not None and (spec_type := vars(type(task)).get("spec_type")) is not None:
        parts["scores"] = spec_type.scores_version
    elif task_factory is not None:
        parts["code"] = _text(type(task))
    named = (name for spec in config.splits.values() for name in spec.lm_eval or ())
    code = (each.code for spec in specs for each in getattr(spec, "functions", ()))
    files = dict.fromkeys(filter(os.path.isfile, [*named, *code]))
    parts |= {
        f"file {n}, {Path(name).name}": sha256(Path(name).read_bytes()).hexdigest()
        for n, name in enumerate(files)
    }
    return {name: [part] for name, part in parts.items()}


def _text(thing: Any) -> str:
    while isinstance(thing, partial):
        thing = thing.func
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        thing = type(thing)  # an object that can be called
    try:
        text = inspect.getsource(thing)
    except (
        OSError,
        TypeError,
        SyntaxError,
        TokenError,
    ):  # made at a prompt, in C, or in a file that has changed since
        text = f"{thing.__module__}.{thing.__qualname__}"
    return sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def versions() -> dict[str, str]:
    """The versions that the bits of a search's scores depend on."""
    return {
        name: version_of(name) for name in ("cma", "hf-evomerge", "numpy", "torch", "transformers")
    }


def version_of(name: str) -> str:
    """The version of a package; ``none`` where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
