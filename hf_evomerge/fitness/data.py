"""What a task's examples are made of: which records, and how one becomes a prompt and an answer.

Where records come from is in ``records.py``; tokens are in ``encoding.py``.
"""

from __future__ import annotations

import dataclasses
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ..errors import FitnessError
from ..recipes.strict_yaml import StrictModel
from .pictures import Picture, read_pictures
from .records import FORMATS, Record, wanted_records

_OF_PROMPTS = ("prompt_field", "template", "chat", "system")
_OF_RECORDS = (
    *(*_OF_PROMPTS, "answer_field", "answer_after", "text_field", "choices", "image_field"),
    *("head_field", "id_field", "gloss_field"),
)
_LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Example:
    """One problem.

    Attributes:
        prompt: The text that the model is given, with the data's template filled in.
        answer: The text that counts as right.
        id: Where it came from; named in every complaint about it.
        chat: Whether the prompt is one message of a user, to be wrapped in the tokenizer's chat template.
        system: The system message of such a chat.
        choices: What there is to choose from, the answer among it, where the data says so.
        pictures: The pictures that go with the prompt.
        content: The record's own text in the prompt, without the template's: what two examples are the same problem by. The
            whole prompt where it is empty.
        head: The name of the head that it is for, where models have several.
        gloss: What the problem says, in a language that readers of the published model know; no model sees it.
    """

    prompt: str
    answer: str
    id: str = ""
    chat: bool = False
    system: str | None = None
    choices: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    content: str = dataclasses.field(default="", compare=False, repr=False)
    head: str = ""
    gloss: str = dataclasses.field(default="", compare=False, repr=False)


Value = bool | int | float | str


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class DataSpec(StrictModel):
    """Which records to read and how to make examples of them.

    Attributes:
        jsonl: A file with one JSON object per line. A relative name starts at the current directory.
        dataset: A data set's repository id on the Hub, or a folder with JSON, CSV or Parquet files.
        data_files: Files of the data set; or, without one, files by name or address: CSV, TSV, JSON, Parquet, Arrow or text.
        columns: The fields of CSV and TSV files that begin without their names.
        streaming: Read from the begin as far as ``count`` needs, and download no more.
        config: The data set's configuration, where it has several.
        split: The data set's split; ``train`` where absent.
        revision: The data set's branch, tag or commit; a commit pins the data.
        lm_eval: Tasks of lm-evaluation-harness, by name or as YAML files, whose documents are the records: for the fitness task
            ``lm_eval``, which says how they become prompts.
        function: A Python function that returns records. Python only: a YAML file cannot name code.
        prompt_field: The field that holds the prompt; not read where there is a template.
        filter: Which records count: a value, or a list of values, for each field that is looked at.
        answer_field: The field that holds the answer; with ``choices`` its text, its label, or its number from 0.
        answer_after: Text after whose last place in that field the answer begins, such as ``####``.
        text_field: The field that holds a whole text: it is the answer, and the prompt is empty.
        choices: What there is to choose from: a field with a list of texts (or with ``text`` and ``label``, two lists), or a
            list of texts with ``{field}`` wherever a field goes.
        image_field: The field that holds a picture, or a list of them: bytes, a data set's image column, or in a file of JSON
            lines the name of a file in its folder.
        head_field: The field that names the head that an example is for, where the task has ``heads``.
        id_field: The field that names the example; its place in the data where absent.
        gloss_field: The field that says the same in a language that readers of the published model know: it stands beside the
            examples that are published, and no model sees it.
        template: The prompt's text with ``{field}`` wherever a field of the record goes, ``{{`` and ``}}`` for braces.
        chat: Wrap the prompt in the tokenizer's chat template, as one message of a user.
        system: The system message of the chat.
        start: How many records to skip, after shuffling.
        count: How many records to take; all that are left where absent.
        shuffle_seed: Shuffle all records with this seed before ``start`` and ``count`` apply: slices of one seed are disjoint.
            A stream is shuffled within a window of 10,000 records.
    """

    jsonl: str | None = None
    dataset: str | None = None
    data_files: str | list[str] | None = None
    columns: list[str] | None = None
    streaming: bool = False
    filter: dict[str, Value | list[Value]] | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    lm_eval: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    function: Callable[[], Iterable[Record]] | None = Field(default=None, exclude=True, repr=False)
    prompt_field: str = "prompt"
    answer_field: str = "answer"
    answer_after: str | None = None
    text_field: str | None = None
    choices: str | list[str] | None = None
    image_field: str | None = None
    head_field: str | None = None
    id_field: str | None = None
    gloss_field: str | None = None
    template: str | None = None
    chat: bool = False
    system: str | None = None
    start: int = Field(default=0, ge=0)
    count: int | None = Field(default=None, ge=1)
    shuffle_seed: int | None = None

    @field_validator("choices")
    @classmethod
    def _check_choices(cls, choices: str | list[str] | None) -> str | list[str] | None:
        if isinstance(choices, list):
            if len(set(choices)) != len(choices) or len(choices) < 2:
                raise ValueError(f"two choices or more, all different, are needed (found {choices!r:.80})")
            for text in choices:
                parse_template(text)
        return choices

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str | None) -> str | None:
        if template is not None and not any(field for _, field in parse_template(template)):
            raise ValueError("no {field} in it, so every prompt would be the same")
        return template

    @model_validator(mode="after")
    def _check_source(self) -> DataSpec:
        given = [name for name in ("jsonl", "dataset", "lm_eval", "function") if getattr(self, name) is not None]
        if len(given) > 1 or (given and given != ["dataset"] and self.data_files) or not (given or self.data_files):
            found = " and ".join([*given, *(["data_files"] if self.data_files else [])]) or "none"
            raise ValueError(f"give exactly one of 'jsonl', 'dataset', 'data_files' and 'lm_eval', found {found}")
        by_library = self.dataset is not None or self.data_files is not None
        if not by_library and (self.config or self.revision or self.split or self.streaming):
            raise ValueError(f"'config', 'split', 'revision' and 'streaming' belong to 'dataset'; here is {given[0]!r}")
        if self.dataset is None and self.data_files is not None and self.suffix not in FORMATS:
            raise ValueError(
                f"data_files: cannot tell how to read {self.name}; files of one kind are read: {', '.join(FORMATS)}"
            )
        if self.columns is not None and (self.dataset is not None or self.suffix not in (".csv", ".tsv")):
            raise ValueError("'columns' names the fields of CSV and TSV files that are named by 'data_files' alone")
        if self.streaming and self.count is None:
            raise ValueError("'streaming' needs a 'count': how far to read")
        if self.dataset == "pandas":
            raise ValueError("dataset: pandas reads pickle files, which are programs; use Parquet")
        if self.system is not None and not self.chat:
            raise ValueError("'system' needs 'chat: true'")
        changed = sorted(name for name in _OF_RECORDS if getattr(self, name) != DataSpec.model_fields[name].default)
        if self.text_field is not None and (others := [name for name in changed if name not in ("text_field", "id_field")]):
            raise ValueError(f"'text_field' is the whole text, without a prompt; leave out {others[0]!r}")
        if self.lm_eval is not None and changed:
            raise ValueError(f"'lm_eval' has prompts and answers of its own; leave out {changed[0]!r}")
        return self

    @property
    def name(self) -> str:
        """What the data is called in messages."""
        files = [self.data_files] if isinstance(self.data_files, str) else self.data_files or []
        return self.jsonl or self.dataset or ", ".join(self.lm_eval or files) or "function"

    @property
    def suffix(self) -> str:
        """How the names of all files end; empty where they do not all end alike."""
        files = [self.data_files] if isinstance(self.data_files, str) else self.data_files or []
        ends = {Path(file.partition("?")[0]).suffix.lower() for file in files}
        return ends.pop() if len(ends) == 1 else ""

    @property
    def fields(self) -> list[str]:
        """The fields that are read from every record."""
        read = [*self.prompt_fields, self.answer_field] if self.text_field is None else [self.text_field]
        if isinstance(self.choices, str):
            read.append(self.choices)
        read += self.filter or ()
        for text in self.choices if isinstance(self.choices, list) else ():
            read += template_fields(text)
        named = (self.image_field, self.head_field, self.id_field, self.gloss_field)
        return list(dict.fromkeys([*read, *(field for field in named if field)]))

    @property
    def prompt_fields(self) -> list[str]:
        """The fields that a prompt is made of."""
        return [self.prompt_field] if self.template is None else template_fields(self.template)


def template_fields(template: str) -> list[str]:
    """The fields that a template names."""
    return [field for _, field in parse_template(template) if field]


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Split a template into pairs of (literal text, field or None).

    Only plain ``{field}`` is a template: attributes, indices, conversions and format specifications would let a data file's
    author reach into Python objects, so they raise ValueError.
    """
    parts: list[tuple[str, str | None]] = []
    for literal, field, spec, conversion in string.Formatter().parse(template):
        if field is not None and (not field.strip() or set(field) & set(".[]{}()") or spec or conversion):
            shown = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ValueError(f"only plain {{field}} can be replaced, found {{{shown}}}; write {{{{ and }}}} for braces")
        parts.append((literal, field))
    return parts


def load_examples(spec: DataSpec) -> list[Example]:
    """Read the examples that a specification asks for, always in the same order.

    Args:
        spec: Where the records are, which of them to take, and what makes the prompt and the answer.

    Raises:
        FitnessError: The data cannot be read, a record lacks a field or is no record, or there are too few records.

    Example:
        >>> len(load_examples(DataSpec(jsonl="problems.jsonl", count=3)))
        3
    """
    if spec.lm_eval is not None:
        from .harness import read_documents

        spec = spec.model_copy(update={"function": partial(read_documents, spec.lm_eval)})
        return [document for _, document in wanted_records(spec)]
    return [_example(record, spec, where) for where, record in wanted_records(spec)]


def check_disjoint(
    search: Sequence[Example],
    validation: Sequence[Example] = (),
    test: Sequence[Example] = (),
    retained: Mapping[str, Sequence[Example]] = MappingProxyType({}),
) -> None:
    """Refuse splits that share a problem: a score on problems that the search has seen says nothing.

    A problem is the text of its record, whichever file it stands in and whatever the template puts around it. Retained data, by
    name, may overlap with the test split and with each other, but not with what the search looks at.

    Raises:
        FitnessError: Two splits share a problem; the message names the first and says how many there are.
    """
    splits = {"search": search, "validation": validation, "test": test}
    seen: dict[str, tuple[str, str]] = {}
    shared = []
    for split, examples in splits.items():
        for example in examples:
            first_split, first_id = seen.setdefault(_content(example), (split, example.id))
            if first_split != split:
                shared.append(f"{first_id} ({first_split}) and {example.id} ({split})")
    if shared:
        more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        raise FitnessError(f"the splits overlap: {shared[0]} have the same prompt{more}; choose disjoint 'start' and 'count'")
    looked_at = {prompt: where for prompt, where in seen.items() if where[0] != "test"}
    for name, examples in retained.items():
        for example in examples:
            if (found := looked_at.get(_content(example))) is not None:
                raise FitnessError(
                    f"retain.{name}: {example.id} is {found[1]} of the {found[0]} split, which the search looks at; what is "
                    "retained must be other examples"
                )


def _content(example: Example) -> str:
    """What two examples are the same problem by: pictures, and text without regard to space and to how letters are encoded."""
    text = " ".join(unicodedata.normalize("NFKC", example.content or example.prompt).split())
    return "\n".join([text, *(picture.digest for picture in example.pictures)])


def _example(record: Any, spec: DataSpec, where: str) -> Example:
    if not isinstance(record, Mapping):
        raise FitnessError(f"{where}: expected a mapping of fields, found {type(record).__name__}")
    name = _text(record, spec.id_field, where) if spec.id_field else where
    if spec.text_field is not None:
        text = _text(record, spec.text_field, where)
        if not text.strip():
            raise FitnessError(f"{where}: the text (field {spec.text_field!r}) is empty")
        return Example("", text, name, content=text)
    prompt = _text(record, spec.prompt_field, where) if spec.template is None else _filled(spec.template, record, where)
    content = "\n".join(_text(record, field, where) for field in spec.prompt_fields)
    choices = _choices(record, spec, where)
    answer = _choice(record, spec, choices, where) if choices else _text(record, spec.answer_field, where)
    if spec.answer_after is not None:
        _, found, answer = answer.rpartition(spec.answer_after)
        if not found:
            raise FitnessError(f"{where}: no {spec.answer_after!r} in the answer (field {spec.answer_field!r})")
        answer = answer.strip()
    if not answer.strip():
        raise FitnessError(f"{where}: the answer (field {spec.answer_field!r}) is empty")
    head = _text(record, spec.head_field, where) if spec.head_field else ""
    gloss = _text(record, spec.gloss_field, where) if spec.gloss_field else ""
    pictures = _pictures(record, spec, where)
    return Example(prompt, answer, name, spec.chat, spec.system, choices, pictures, content, head, gloss)


def _pictures(record: Record, spec: DataSpec, where: str) -> tuple[Picture, ...]:
    if spec.image_field is None:
        return ()
    if spec.image_field not in record:
        raise FitnessError(f"{where}: no field {spec.image_field!r}; its fields are {', '.join(map(str, record)) or 'none'}")
    folder = Path(spec.jsonl).absolute().parent if spec.jsonl is not None else None
    return read_pictures(record[spec.image_field], f"{where} (field {spec.image_field!r})", folder)


def _filled(template: str, record: Record, where: str) -> str:
    return "".join(literal + (_text(record, field, where) if field else "") for literal, field in parse_template(template))


def _choices(record: Record, spec: DataSpec, where: str) -> tuple[str, ...]:
    """The texts that there are to choose from; none where the data has no choices."""
    if spec.choices is None:
        return ()
    if isinstance(spec.choices, list):
        return tuple(_filled(text, record, where) for text in spec.choices)
    listed = _listed(record, spec.choices, "text")
    if listed is None or not all(isinstance(text, str | int | float) for text in listed):
        raise FitnessError(f"{where}: field {spec.choices!r} is no list of texts (found {record.get(spec.choices)!r:.80})")
    return tuple(str(text) for text in listed)


def _choice(record: Record, spec: DataSpec, choices: tuple[str, ...], where: str) -> str:
    """The choice that the answer means: its text, its label, or its number from 0."""
    answer = _text(record, spec.answer_field, where)
    labels = (_listed(record, spec.choices, "label") if isinstance(spec.choices, str) else None) or _LETTERS[: len(choices)]
    readings = [choices, [str(label) for label in labels]]
    if answer.isdecimal() and labels == _LETTERS[: len(choices)]:
        readings.append([str(number) for number in range(len(choices))])
    means = {choices[names.index(answer)] for names in readings if answer in names[: len(choices)]}
    if len(means) != 1:
        found = "none" if not means else "several"
        raise FitnessError(
            f"{where}: the answer {answer!r:.80} (field {spec.answer_field!r}) means {found} of the choices "
            f"{list(choices)!r:.200}; give the choice's text, its letter, or its number from 0"
        )
    return means.pop()


def _listed(record: Record, field: str, part: str) -> Sequence[Any] | None:
    """A field's list, or the list of that name in it; None where there is none."""
    value = record.get(field)
    value = value.get(part) if isinstance(value, Mapping) else value if part == "text" else None
    return value if isinstance(value, Sequence) and not isinstance(value, str) else None


def _text(record: Record, field: str, where: str) -> str:
    """A field as text. Whole numbers that the file holds as floats are written without ``.0``."""
    if field not in record:
        raise FitnessError(f"{where}: no field {field!r}; its fields are {', '.join(map(str, record)) or 'none'}")
    value = record[field]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise FitnessError(f"{where}: field {field!r} is neither text nor a number (found {value!r:.80})")
    text = str(value)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise FitnessError(f"{where}: field {field!r} has half of a surrogate pair, which is no character; mend the file")
    return text
