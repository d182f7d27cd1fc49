"""Loads the examples that a `DataSpec` describes, and refuses splits that share a problem."""

from __future__ import annotations

import math
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...errors import FitnessError
from ..example import Example, Picture, Record
from ..pictures import read_pictures
from .records import wanted_records
from .spec import DataSpec, parse_template

_LETTERS = string.ascii_uppercase


def load_examples(spec: DataSpec, *, trust_remote_code: bool = False) -> list[Example]:
    """Read the examples that a specification asks for, always in the same order.

    Args:
        spec: Where the records are, which of them to take, and what makes the prompt and the
            answer.
        trust_remote_code: Whether task files of lm_eval, which may be code, are loaded.

    Raises:
        FitnessError: The data cannot be read, a record lacks a field or is no record, or there are
            too few records.

    Example:
        >>> len(load_examples(DataSpec(jsonl="problems.jsonl", count=3)))
        3
    """
    if spec.sources is not None:
        return [
            replace(example, source=name)
            for name, part in spec.sources.items()
            for example in load_examples(part, trust_remote_code=trust_remote_code)
        ]
    if spec.lm_eval is not None:
        from ..tasks.harness import read_documents

        read = partial(read_documents, spec.lm_eval, trust_remote_code=trust_remote_code)
        spec = spec.model_copy(update={"function": read})
        return [document for _, document in wanted_records(spec)]
    examples = [_example(record, spec, where) for where, record in wanted_records(spec)]
    return [replace(example, weight=spec.weight) for example in examples]


def check_disjoint(
    search: Sequence[Example],
    validation: Sequence[Example] = (),
    test: Sequence[Example] = (),
    retained: Mapping[str, Sequence[Example]] = MappingProxyType({}),
) -> None:
    """Refuse splits that share a problem: a score on problems that the search has seen says
    nothing.

    A problem is the text of its record, whichever file it stands in and whatever the template puts
    around it. Retained data, by name, may overlap with the test split and with each other, but not
    with what the search looks at.

    Raises:
        FitnessError: Two splits share a problem; the message names the first and says how many
            there are.
    """
    splits = {"search": search, "validation": validation, "test": test}
    # The first place of each problem is kept: a second one in another split is an overlap, a second
    # one in the same split is not.
    seen: dict[str, tuple[str, str]] = {}
    shared = []
    for split, examples in splits.items():
        for example in examples:
            first_split, first_id = seen.setdefault(content_of(example), (split, example.id))
            if first_split != split:
                shared.append(f"{first_id} ({first_split}) and {example.id} ({split})")
    if shared:
        more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        raise FitnessError(
            f"the splits overlap: {shared[0]} have the same prompt{more}; choose disjoint "
            "'start' and 'count'"
        )
    looked_at = {prompt: where for prompt, where in seen.items() if where[0] != "test"}
    for name, examples in retained.items():
        for example in examples:
            if (found := looked_at.get(content_of(example))) is not None:
                raise FitnessError(
                    f"retain.{name}: {example.id} is {found[1]} of the {found[0]} split, "
                    "which the search looks at; what is "
                    "retained must be other examples"
                )


# NFKC makes full-width and half-width letters one, and runs of space become one space: the same
# problem copied from another file must not pass as a new one.
def content_of(example: Example) -> str:
    """Return what makes two examples the same problem: pictures, and text whatever its space and
    its letters' encoding."""
    text = " ".join(unicodedata.normalize("NFKC", example.content or example.prompt).split())
    return "\n".join([text, *(picture.digest for picture in example.pictures)])


def _example(record: Any, spec: DataSpec, where: str) -> Example:
    if not isinstance(record, Mapping):
        raise FitnessError(f"{where}: expected a mapping of fields, found {type(record).__name__}")
    if spec.text_field is not None:
        text = _text(record, spec.text_field, where)
        if not text.strip():
            raise FitnessError(f"{where}: the text (field {spec.text_field!r}) is empty")
        return Example("", text, where, content=text)
    prompt = (
        _text(record, spec.prompt_field, where)
        if spec.template is None
        else _filled(spec.template, record, where)
    )
    content = "\n".join(_text(record, field, where) for field in spec.prompt_fields)
    choices = _choices(record, spec, where)
    answer = "" if spec.answer_field is None else _text(record, spec.answer_field, where)
    answer = _choice(answer, record, spec, choices, where) if choices else answer
    if spec.answer_after is not None:
        _, found, answer = answer.rpartition(spec.answer_after)
        if not found:
            raise FitnessError(
                f"{where}: no {spec.answer_after!r} in the answer (field {spec.answer_field!r})"
            )
        answer = answer.strip()
    if spec.answer_field is not None and not answer.strip():
        raise FitnessError(f"{where}: the answer (field {spec.answer_field!r}) is empty")
    head = _text(record, spec.head_field, where) if spec.head_field else ""
    gloss = _text(record, spec.gloss_field, where) if spec.gloss_field else ""
    pictures: tuple[Picture, ...] = ()
    if spec.image_field is not None:
        given = _field(record, spec.image_field, where)
        pictures = read_pictures(given, f"{where} (field {spec.image_field!r})", _folder_of(spec))
    return Example(
        prompt,
        answer,
        where,
        spec.chat,
        spec.system,
        choices,
        pictures,
        content,
        head,
        gloss=gloss,
        columns={field: _field(record, field, where) for field in spec.other_fields or ()},
    )


def _folder_of(spec: DataSpec) -> Path | None:
    """The folder that the data may name pictures in: beside its files, or the cache of the Hub;
    None for a user's function."""
    if spec.function is not None:
        return None
    if spec.dataset is not None:
        from huggingface_hub.constants import HF_HOME

        return Path(spec.dataset).absolute() if Path(spec.dataset).is_dir() else Path(HF_HOME)
    return Path(spec.jsonl or (spec.data_files or [])[0]).absolute().parent


def _filled(template: str, record: Record, where: str) -> str:
    return "".join(
        literal + (_text(record, field, where) if field else "")
        for literal, field in parse_template(template)
    )


def _choices(record: Record, spec: DataSpec, where: str) -> tuple[str, ...]:
    """The texts that there are to choose from; none where the data has no choices."""
    if spec.choices is None:
        return ()
    if isinstance(spec.choices, list):
        return tuple(_filled(text, record, where) for text in spec.choices)
    listed = _listed(record, spec.choices, "text")
    if listed is None or not all(isinstance(text, str | int | float) for text in listed):
        raise FitnessError(
            f"{where}: field {spec.choices!r} is no list of texts (found "
            f"{record.get(spec.choices)!r:.80})"
        )
    return tuple(str(text) for text in listed)


def _choice(
    answer: str, record: Record, spec: DataSpec, choices: tuple[str, ...], where: str
) -> str:
    """The choice that the answer means: its text, its label, or its number from 0."""
    labels = (
        _listed(record, spec.choices, "label") if isinstance(spec.choices, str) else None
    ) or _LETTERS[: len(choices)]
    # An answer may be the text of a choice, its label or its number. Texts such as "2" may be read
    # in two ways; it is refused unless all readings mean one choice.
    readings = [choices, [str(label) for label in labels]]
    if answer.isdecimal() and labels == _LETTERS[: len(choices)]:
        readings.append([str(number) for number in range(len(choices))])
    means = {choices[names.index(answer)] for names in readings if answer in names[: len(choices)]}
    if len(means) != 1:
        found = "none" if not means else "several"
        raise FitnessError(
            f"{where}: the answer {answer!r:.80} (field {spec.answer_field!r}) means {found} "
            "of the choices "
            f"{list(choices)!r:.200}; give the choice's text, its letter, or its number from 0"
        )
    return means.pop()


def _listed(record: Record, field: str, part: str) -> Sequence[Any] | None:
    """A field's list, or the list of that name in it; None where there is none."""
    value = record.get(field)
    if isinstance(value, Mapping):
        value = value.get(part)
    elif part != "text":
        return None
    return value if isinstance(value, Sequence) and not isinstance(value, str) else None


def _field(record: Record, field: str, where: str) -> Any:
    if field not in record:
        raise FitnessError(
            f"{where}: no field {field!r}; its fields are {', '.join(map(str, record)) or 'none'}"
        )
    return record[field]


def _text(record: Record, field: str, where: str) -> str:
    """A field as text. Whole numbers that the file holds as floats are written without ``.0``."""
    value = _field(record, field, where)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")  # one message, as trl writes a prompt or a completion
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_none = isinstance(value, float) and not math.isfinite(value)  # NaN, as Python's json has it
    if is_none or not isinstance(value, str | int | float) or isinstance(value, bool):
        raise FitnessError(
            f"{where}: field {field!r} is neither text, nor a number, nor one chat message (found "
            f"{value!r:.80}); write each problem as one text"
        )
    text = str(value)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise FitnessError(
            f"{where}: field {field!r} has half of a surrogate pair, which is no character; "
            "mend the file"
        )
    return text
