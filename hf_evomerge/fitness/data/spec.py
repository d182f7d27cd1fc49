"""The `data` sections of a search file: which records to read, and how one becomes a prompt and an
answer.

``records.py`` reads records, ``loading.py`` makes examples of them, ``encoding.py`` makes tokens.
"""

from __future__ import annotations

import csv
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ...recipes.strict_yaml import Count, Index, Positive, StrictModel, Whole
from ..example import Record

_OF_RECORDS = (
    "prompt_field",
    "template",
    "chat",
    "system",
    "answer_field",
    "answer_after",
    "text_field",
    "choices",
    "image_field",
    "head_field",
    "gloss_field",
    "other_fields",
)

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".txt": ("text", {}),
}
"""How files are read that are named alone, by the end of their name."""

Value = bool | Whole | Annotated[float, Field(gt=-1e300, lt=1e300)] | str


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[
    list[str],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    Field(min_length=1),
]
"""Names; one stands for a list of itself."""


class DataSpec(StrictModel):
    """Records to read, and how to make examples of them."""

    jsonl: str | None = None
    """A file with one JSON object per line. A relative name starts at the folder of the search
    file, or else at the current directory."""
    dataset: str | None = None
    """A data set's repository id on the Hub, or a folder with JSON, CSV or Parquet files."""
    data_files: Names | None = None
    """Files of the data set; or, without one, files by name or address: CSV, TSV, JSON, Parquet,
    Arrow or text."""
    columns: list[str] | None = None
    """The fields of CSV and TSV files that begin without their names."""
    streaming: bool = False
    """Read from the begin as far as ``count`` needs, and download no more."""
    filter: dict[str, Value | list[Value]] | None = None
    """Records that count: a value, or a list of values, for each field that is looked at."""
    config: str | None = None
    """The data set's configuration, where it has several."""
    split: str | None = None
    """The data set's split; ``train`` where absent."""
    revision: str | None = None
    """The data set's branch, tag or commit; a commit pins the data."""
    lm_eval: Names | None = None
    """Tasks of lm-evaluation-harness, by name or as YAML files, whose documents are the records:
    for the fitness task ``lm_eval``, which says how they become prompts."""
    function: Callable[[], Iterable[Record]] | None = Field(default=None, exclude=True, repr=False)
    """A Python function that returns records. Python only: a YAML file cannot name code."""
    sources: dict[str, DataSpec] | None = Field(default=None, min_length=1)
    """Data of several skills or sources, by name; ``base`` is the base. Each has all fields of its
    own."""
    weight: Positive = 1.0
    """Factor of these examples' scores in the fitness. Under ``sources``, 1 over the gap between
    base and best parent keeps one skill from outweighing another."""
    prompt_field: str = "prompt"
    """The field that holds the prompt; not read where there is a template."""
    answer_field: str | None = "answer"
    """The field that holds the answer; with ``choices`` its text, its label, or its number from 0.
    ``null``: the records have no answers."""
    answer_after: str | None = None
    """Text after whose last place in that field the answer begins, such as ``####``."""
    text_field: str | None = None
    """The field that holds a whole text: it is the answer, and the prompt is empty."""
    choices: str | list[str] | None = None
    """What there is to choose from: a field with a list of texts (or with ``text`` and ``label``,
    two lists), or a list of texts with ``{field}`` wherever a field goes."""
    image_field: str | None = None
    """The field that holds a picture, or a list of them: bytes, a data set's image column, or in a
    file of JSON lines the name of a file in its folder."""
    head_field: str | None = None
    """The field that names the head that an example is for, where the task has ``heads``."""
    gloss_field: str | None = None
    """The field that says the same in a language that readers of the published model know: it
    stands beside the examples that are published, and no model sees it."""
    other_fields: Names | None = None
    """Fields that reward functions are given by their names, beside the answer."""
    template: str | None = None
    """The prompt's text with ``{field}`` wherever a field of the record goes, ``{{`` and ``}}`` for
    braces."""
    chat: bool = False
    """Wrap the prompt in the tokenizer's chat template, as one message of a user."""
    system: str | None = None
    """The system message of the chat."""
    start: Index = 0
    """How many records to skip, after shuffling."""
    count: Count | None = None
    """How many records to take; all that are left where absent."""
    shuffle_seed: Index | None = None
    """Shuffle all records with this seed before ``start`` and ``count`` apply: slices of one seed
    are disjoint. A stream is shuffled within a window of 10,000 records."""

    @field_validator("choices")
    @classmethod
    def _check_choices(cls, choices: str | list[str] | None) -> str | list[str] | None:
        if isinstance(choices, list):
            if len(set(choices)) != len(choices) or len(choices) < 2:
                raise ValueError(
                    f"two choices or more, all different, are needed (found {choices!r:.80})"
                )
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
        given = [
            name
            for name in ("jsonl", "dataset", "lm_eval", "function", "sources")
            if getattr(self, name) is not None
        ]
        if (
            len(given) > 1
            or (given and given != ["dataset"] and self.data_files)
            or not (given or self.data_files)
        ):
            found = " and ".join([*given, *(["data_files"] if self.data_files else [])]) or "none"
            raise ValueError(
                "give exactly one of 'jsonl', 'dataset', 'data_files', 'lm_eval' and "
                f"'sources', found {found}"
            )
        by_library = self.dataset is not None or self.data_files is not None
        if not by_library and (self.config or self.revision or self.split or self.streaming):
            raise ValueError(
                "'config', 'split', 'revision' and 'streaming' belong to 'dataset'; here is "
                f"{given[0]!r}"
            )
        if self.dataset is None and self.data_files is not None and self.suffix not in FORMATS:
            raise ValueError(
                f"data_files: cannot tell how to read {self.name}; files of one kind are "
                f"read: {', '.join(FORMATS)}"
            )
        if self.columns is not None and (
            self.dataset is not None or self.suffix not in (".csv", ".tsv")
        ):
            raise ValueError(
                "'columns' names the fields of CSV and TSV files that are named by "
                "'data_files' alone"
            )
        if self.streaming and self.count is None:
            raise ValueError("'streaming' needs a 'count': how far to read")
        if self.dataset == "pandas":
            raise ValueError("dataset: pandas reads pickle files, which are programs; use Parquet")
        if self.system is not None and not self.chat:
            raise ValueError("'system' needs 'chat: true'")
        changed = sorted(
            name
            for name in _OF_RECORDS
            if getattr(self, name) != DataSpec.model_fields[name].default
        )
        if self.text_field is not None and (
            others := [name for name in changed if name != "text_field"]
        ):
            raise ValueError(
                f"'text_field' is the whole text, without a prompt; leave out {others[0]!r}"
            )
        if self.sources is not None and (
            outside := sorted(self.model_dump(exclude_defaults=True).keys() - {"sources"})
        ):
            raise ValueError(
                f"'sources': each source has fields of its own; move {outside[0]!r} there"
            )
        if self.lm_eval is not None and changed:
            raise ValueError(
                f"'lm_eval' has prompts and answers of its own; leave out {changed[0]!r}"
            )
        return self

    @property
    def name(self) -> str:
        """Name of the data in messages."""
        of_sources = [each.name for each in (self.sources or {}).values()]
        return (
            self.jsonl
            or self.dataset
            or ", ".join(self.lm_eval or of_sources or self.data_files or [])
            or "function"
        )

    @property
    def suffix(self) -> str:
        """Suffix of all files; empty where they do not all end alike."""
        ends = {Path(file.partition("?")[0]).suffix.lower() for file in self.data_files or ()}
        return ends.pop() if len(ends) == 1 else ""

    @property
    def fields(self) -> list[str]:
        """The fields that are read from every record."""
        answers = [] if self.answer_field is None else [self.answer_field]
        read = [*self.prompt_fields, *answers] if self.text_field is None else [self.text_field]
        if isinstance(self.choices, str):
            read.append(self.choices)
        read += self.filter or ()
        for text in self.choices if isinstance(self.choices, list) else ():
            read += template_fields(text)
        named = (self.image_field, self.head_field, self.gloss_field)
        read += [*(field for field in named if field), *(self.other_fields or ())]
        return list(dict.fromkeys(read))

    @property
    def prompt_fields(self) -> list[str]:
        """The fields that a prompt is made of."""
        return [self.prompt_field] if self.template is None else template_fields(self.template)


def template_fields(template: str) -> list[str]:
    """The fields that a template names."""
    return [field for _, field in parse_template(template) if field]


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Split a template into pairs of (literal text, field or None).

    Only plain ``{field}`` is a template: attributes, indices, conversions and format specifications
    would let a data file's author reach into Python objects, so they raise ValueError.
    """
    parts: list[tuple[str, str | None]] = []
    for literal, field, spec, conversion in string.Formatter().parse(template):
        if field is not None and (
            not field.strip() or set(field) & set(".[]{}()") or spec or conversion
        ):
            shown = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ValueError(
                f"only plain {{field}} can be replaced, found {{{shown}}}; write {{{{ and "
                f"}}}} for braces"
            )
        parts.append((literal, field))
    return parts
