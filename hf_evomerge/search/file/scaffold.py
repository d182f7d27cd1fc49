"""A first search file: what can be seen in the headers of the models and in the data, with comments
for who reads it first."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ...building.tokens import match_tokens
from ...checkpoints.architecture import is_of_kind
from ...checkpoints.chat_template import most_common_template
from ...checkpoints.checkpoint import Parent
from ...checkpoints.compatibility import check_mergeable, compared_labels, head_labels
from ...checkpoints.component import as_parts
from ...checkpoints.open import config_name, is_adapter, open_source
from ...checkpoints.source import Source
from ...checkpoints.unchanged import twins
from ...errors import FitnessError, SearchError, SourceError
from ...fitness.data.loading import load_examples
from ...fitness.data.records import read_jsonl
from ...fitness.data.spec import DataSpec
from ...fitness.registry import parse_task
from ...fitness.tasks.classification import label_names, label_shares
from ...recipes.recipe import MergePart, Recipe, SourceRef, labels_of, with_optional
from ...recipes.strict_yaml import in_line, parse_yaml
from .config import SearchConfig
from .named_base import named_base

PROMPTS = ("prompt", "question", "query", "instruction", "problem", "input", "text")
ANSWERS = (
    "answer",
    "answer_number",
    "passage",
    "output",
    "response",
    "completion",
    "target",
    "label",
)
GLOSSES = ("gloss", "translation", "english")
LABELS = (
    "label",
    "labels",
    "score",
    "scores",
)  # by the rule of sentence-transformers all other fields are texts
TASKS = ("classification", "retrieval", "generation")  # scored as wholes, in no form
# More tell little, and every candidate has to answer those of the search.
MOST = {"search": 128, "validation": 200, "test": 400}
LEAST = 8
FEW = 16  # below, a validation split chooses nothing
_TESTED = 200  # of which a test tells an accuracy to .035
_LONG = 200  # characters of an answer that is a text rather than a result
# Thai, Japanese, Chinese, to the end.
_NO_SPACES = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uff00-\uffef][^\w\s]*$")
_MARK = "####"  # what the result of a worked solution follows in GSM8K and its like
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+")


class AnswerForm(NamedTuple):
    """Form in which an answer follows its prompt.

    Attributes:
        separator: Text between the two.
        chat: Whether the prompt is in the chat template.
    """

    separator: str
    chat: bool


Measure = Callable[[SearchConfig], tuple[AnswerForm, Mapping[str, float], list[str]]]
"""Finds the best form for a search, and says what is worth saying of it."""


@dataclass(frozen=True)
class Draft:
    """A search file that nobody has run yet.

    Attributes:
        text: The file.
        found: What it was made from, one line each.
    """

    text: str
    found: tuple[str, ...]


def draft_search(
    sources: Sequence[str],
    data: str | Path | Sequence[str | Path],
    *,
    base: str | None = None,
    device: str = "cpu",
    measure: Measure | None = None,
) -> Draft:
    """Write a search file for these models and problems: a quick search first, with what one would
    change after it.

    Of repositories only small files and headers are fetched, unless something is measured. Models
    of one depth are merged (``space: ps``), others can only be followed layer by layer
    (``space: dfs``). The splits are slices of the shuffled data that do not overlap.

    Args:
        sources: Folders or repositories of two or more fine-tunes. One may be a LoRA adapter, which
            names its base or is one of the base that is given; ``BASE+ADAPTER`` says both; and a
            folder of adapters stands for all of them.
        data: A file with one JSON object per line; or several, one for each skill that the result
            is to have. The skills count alike: each score is divided by the gap between base and
            best source, where that is measured. Without answers, one file of prompts for each
            source, in their order: on these the result is to answer as it does.
        base: Their common ancestor; by default what adapters, cards or configs name.
        device: Where candidates will be evaluated.
        measure: Finds the form of the answers, where the task has one; it is a guess without.

    Raises:
        SourceError: A model cannot be read, or the models cannot be merged.
        FitnessError: The data cannot be read, has no fields that look like prompt and answer, or
            too few records.

    Example:
        >>> draft = draft_search(["fine-tune-a", "fine-tune-b"], "problems.jsonl", base="base")
        >>> draft.text.count("problems.jsonl")
        2
    """
    names = [name for given in sources for name in _adapters_in(given)]
    if len(names) < 2:
        raise SearchError(
            "sources: give the names of two fine-tunes of one model, or more; for one see "
            "`hf-evomerge init --example prune`"
        )
    opened = [open_source(_named(name, base)) for name in names]
    files = [data] if isinstance(data, str | os.PathLike) else data
    skills = _skills([_Problems(os.fspath(file), opened) for file in files])
    problems = skills[0]
    refs = [source.ref for source in opened]
    given = SourceRef(model=base) if base else _base_of(refs)
    if problems.task == "agreement":
        _give_prompts(skills, labels_of([*refs, *([given] if given else [])])[: len(refs)])
    said = list[str]()
    if given is None:
        given, said = _named_base(opened)
    everyone = with_optional(opened, None if given is None else open_source(given))
    depths = [source.layer_count for source in everyone]
    by_token = _check_together(opened, everyone[len(opened) :])
    templates = [most_common_template([source.folder]) is not None for source in everyone]
    merged = len(set(depths)) == 1
    dtype: Any = opened[0].config.dtype
    facts = {
        "merged": merged,
        "depths": depths,
        "refs": refs,
        "base": given,
        "by_token": by_token,
        "blurred": device == "cpu" and getattr(dtype, "itemsize", 4) < 4,
        "device": device,
        "skills": skills,
        "problems": problems,
        "vary": MOST["search"] - min(each.sizes["search"] for each in skills)
        if problems.task == "agreement"
        else 0,
        "has_template": any(templates),
        # a LoRA may learn beside the merge
        "beside": merged
        and given is not None
        and given.adapter is None
        and problems.has_gradient
        and importlib.util.find_spec("peft") is not None,
        "groups": -(-depths[0] // max(1, depths[0] // 8)),
    }
    if len(skills) == len(names) and problems.task != "agreement":
        said.append(
            "where each file is one model's own skill, prompts without answers keep more of both: "
            "give one file for each model, in their order"
        )
    if problems.task == "agreement" and importlib.util.find_spec("peft") is None:
        said.append(
            "a LoRA beside the merge keeps more of all, and needs peft: pip install "
            '"hf-evomerge[lora]"'
        )
    text = _render(facts, problems.form(chat=all(templates)), {})
    config = parse_yaml(SearchConfig, text, SearchError)
    if measure is not None and problems.task in ("likelihood", "multiple_choice"):
        form, gaps, figures = measure(config)
        said += figures
        text = _render(facts, form, gaps)
    found = (
        *_of_sizes(opened if merged else everyone),
        *(line for each in skills for line in each.in_words()),
        *said,
        *(
            f"warning: {line}"
            for line in twins(everyone, [*labels_of(refs), "the base"], download=False)
        ),
    )
    return Draft(text, found)


def _render(facts: Mapping[str, Any], form: AnswerForm, gaps: Mapping[str, float]) -> str:
    """Write the file: the template says all that a file may hold."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    environment.filters |= {"yaml": in_line, "json": json.dumps}
    template = Path(__file__).with_name("search.yaml.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(facts, form=form, gaps=gaps)


def _check_together(sources: Sequence[Source], bases: Sequence[Source]) -> bool:
    """Check that models can be merged, or followed where their depths differ; tells whether rows
    are matched by token. Raises `SourceError`."""
    everyone = [*sources, *bases]
    same_depth = len({source.layer_count for source in everyone}) == 1
    by_token = same_depth and len({source.vocab_size for source in everyone}) > 1
    recipe = Recipe(
        sources=[source.ref for source in sources],
        base=bases[0].ref if bases else None,
        merge=MergePart(method="linear"),
        vocabulary="union" if by_token else None,
    )
    parts = as_parts(everyone)
    merged = dict(enumerate(parts[: len(sources)]))
    matched, base = match_tokens(recipe, merged, next(iter(parts[len(sources) :]), None))
    check_mergeable(list(matched.values()), base, same_depth=same_depth)
    return by_token


def _named_base(sources: Sequence[Source]) -> tuple[SourceRef | None, list[str]]:
    """Find the base that the sources name, unless it does not go with them; and say so, or what it
    costs to have none."""
    if len({source.layer_count for source in sources}) > 1:
        return None, []  # a path needs none
    base, words = named_base(sources)
    said = f" ({words})" if words else ""
    if base is not None:
        try:
            ancestor = open_source(base)
            _check_together(sources, [ancestor])
            if ancestor.layer_count == sources[0].layer_count:
                return base, [f"the base is the one that they name{said}"]
            said = f" ({words}, of {ancestor.layer_count} layers)"
        except SourceError as error:
            said = f" ({words}, which will not do: {error})"
    without = "weights are averaged (merge: {method: linear}); task vectors need --base"
    return None, [f"warning: no base is known{said}: {without}, and mostly merge better"]


def _of_sizes(models: Sequence[Source]) -> list[str]:
    """Say how large models are; of each where their depths differ."""
    depths = [model.layer_count for model in models]
    sizes = [_size(model) / 1e6 for model in models]
    if len(set(depths)) == 1:
        return [f"{len(models)} models of {depths[0]} layers, {sizes[0]:,.4g}M parameters each"]
    each = zip(labels_of([model.ref for model in models]), depths, sizes, strict=True)
    said = (f"{label} has {depth} layers and {size:,.4g}M" for label, depth, size in each)
    return [
        f"{len(models)} models: {'; '.join(said)} parameters",
        "models of different depths cannot be merged: a path through their layers is searched "
        "(space: dfs)",
    ]


def _size(model: Source) -> int:
    return sum(info.numel for info in model.tensors.values())


def _base_of(refs: Sequence[SourceRef]) -> SourceRef | None:
    """The base of the adapters among some sources; raises `SearchError` where they have several."""
    bases = {ref.parts[0] for ref in refs if ref.adapter is not None}
    if len(bases) > 1:
        raise SearchError(
            f"sources: adapters of {', '.join(sorted(map(str, bases)))}; give those of one base"
        )
    return next(iter(bases), None)


def _adapters_in(name: str) -> list[str]:
    """The adapters in a folder of them; anything else stands for itself."""
    folder = Path(name)
    if not folder.is_dir() or (folder / config_name(folder)).exists():
        return [name]
    return [str(file.parent) for file in sorted(folder.glob("*/adapter_config.json"))] or [name]


def _named(name: str, base: str | None) -> SourceRef:
    """A source as it is named on a command line."""
    folder = Path(name)
    if base is not None and is_adapter(folder):
        return SourceRef(model=base, adapter=name)
    model, _, adapter = (name, "", "") if folder.exists() else name.partition("+")
    pairs = (
        (part, "", "") if Path(part).exists() else part.partition("@") for part in (model, adapter)
    )
    (model, _, revision), (adapter, _, at) = pairs
    return SourceRef(
        model=model, revision=revision or None, adapter=adapter or None, adapter_revision=at or None
    )


def _task_of(source: Parent) -> str:
    """The first task that scores models of this class; where none does `likelihood`, which the
    search refuses."""
    tasks = ("likelihood", *TASKS)
    return next(
        (task for task in tasks if is_of_kind(source.config, parse_task({"task": task}).kinds)),
        tasks[0],
    )


class _Problems:
    """Problem records: what they are, and how many go into which split."""

    def __init__(self, file: str, sources: Sequence[Parent]) -> None:
        self.file = file
        self.name = Path(file).stem  # of the skill
        self.joined = False  # whether the test has what was for validation
        records = [record for _, record in read_jsonl(file)]
        self.fields = ", ".join(records[0]) if records else ""
        self.count = len(records)
        if self.count < LEAST:
            raise FitnessError(
                f"{file}: {self.count} records; a search needs {LEAST} at least, to search, "
                "choose and test"
            )
        tasks = [_task_of(source) for source in sources]
        if "retrieval" in tasks and len(set(tasks)) > 1:
            bare = sources[tasks.index("retrieval")]
            kind = (bare.config.architectures or ["a model"])[0]
            raise SearchError(
                f"{bare}: {kind} has no head, as others here have; leave it out, or give it "
                "as the base"
            )
        self.task = tasks[0]
        self.where = self._pair(records[0], sources[0]) or self._fields(records[0])
        if self.where.get("answer_field", "") is None:
            self.task = "agreement"
        if "choices" in self.where and self.task != "likelihood":
            del self.where["choices"]
        elif "choices" in self.where:
            self.task = "multiple_choice"
        if (
            self.task == "classification"
            and len({tuple(compared_labels(source)) for source in sources}) > 1
        ):
            raise FitnessError(
                f"{file}: the sources have other labels each; write the search file by hand, with "
                "heads, which examples name in head_field"
            )
        says = (name for name in GLOSSES if _holds_text(records, name))
        if gloss := next(says, None):
            self.where["gloss_field"] = gloss
        if self.task != "agreement" and all(
            _MARK in str(record.get(self.where.get("answer_field", "answer"))) for record in records
        ):
            self.where["answer_after"] = _MARK
        self.examples = load_examples(DataSpec(jsonl=file, **self.where))
        for example in self.examples if self.task == "classification" else ():
            label_shares(example, label_names(sources[0].config))
        if self.task == "agreement" and any(
            not record.keys().isdisjoint(ANSWERS) for record in records
        ):
            raise FitnessError(
                f"{file}: some records have an answer and some have none; give all one, or none"
            )
        if empty := sum(not example.prompt.strip() for example in self.examples):
            raise FitnessError(f"{file}: {empty} prompts are empty; leave them out")
        prompts = Counter(" ".join(example.prompt.split()) for example in self.examples)
        if (most := prompts.most_common(1)[0])[1] > 1:
            raise FitnessError(
                f"{file}: prompts occur more than once, such as {most[0]!r:.60} ({most[1]} times); "
                "keep one of each, so that a model is not tested on what it was searched with"
            )
        self.sizes = self._shares()

    # A gradient gets better with each example that it sees, and ends at one point, which needs no
    # choosing: on a pair of tiny models 8, 16, 32, 63 and 126 examples gave an accuracy of .14,
    # .27, .45, .66 and .71, and 31 or 63 more for validation changed it by .01 at most. So half
    # are searched with, and what a good test does not need is for validation, or a fifth of the
    # rest, by which a LoRA beside the merge gets its rate. Candidates of a black box are many, and
    # the best on the search examples is so by luck in part.
    def _shares(self) -> dict[str, int]:
        """Number of examples per split."""
        half = self.count // 2
        left = self.count - min(max(half, min(16, self.count - LEAST)), MOST["search"])
        part = self.count * 3 // 10
        chosen = min(part, MOST["validation"], max(left // 5, left - _TESTED))
        if not self.has_gradient and part >= FEW:
            left = self.count - min(part, MOST["search"])
            chosen = min(part, MOST["validation"])
        sizes = {"search": self.count - left}
        if chosen >= FEW:
            sizes["validation"] = chosen
            left -= chosen
        return {**sizes, "test": min(left, MOST["test"])}

    def join_validation(self) -> None:
        """Give what is for validation to the test: another skill has none to spare."""
        self.joined = "validation" in self.sizes
        self.sizes["test"] += self.sizes.pop("validation", 0)

    @property
    def needs_all(self) -> bool:
        """True where all prompts are for the search, and those of validation are made of them."""
        return self.task == "agreement" and self.count < FEW + LEAST

    @property
    def takes_shots(self) -> bool:
        """True where examples can stand in the prompt, before the question."""
        text = self.task in ("likelihood", "multiple_choice", "generation")
        return text and "image_field" not in self.where

    @property
    def has_gradient(self) -> bool:
        """True where the task has a gradient."""
        return self.task not in ("multiple_choice", "generation")

    def in_words(self) -> list[str]:
        """Say how many examples each split has, and why."""
        sizes = ", ".join(f"{count} for {split}" for split, count in self.sizes.items())
        lines = [f"{self.count} problems in {self.file}: {sizes}"]
        if "test" in self.sizes:
            lines.append(self._about_splits())
        else:
            lines.append(
                "models are chosen on prompts made of these, which flatters them; from "
                f"{FEW + LEAST} prompts on, half are kept for a test"
            )
        if self.task == "agreement":
            lines.append(f"no answers in it: the result is to answer as {self.name} does")
        answers = Counter(each.answer for each in self.examples)
        answer, count = answers.most_common(1)[0]
        if answer and 2 * count > self.count and self.task != "classification":
            lines.append(
                f"warning: {answer!r:.40} is the answer to {count} of them: does the task ask for "
                "more?"
            )
        return lines

    def _about_splits(self) -> str:
        """Say what the number of examples of each split is good for."""
        error = 0.98 / math.sqrt(self.sizes["test"])  # 95 %, at most
        helped = "more search examples mostly help"
        if self.sizes["search"] == MOST["search"]:
            helped = "more search examples may help (count), and take longer"
        chosen = "validation guards against luck"
        if self.joined:
            chosen = "none are left to choose the best by, for another file has too few"
        elif "validation" not in self.sizes:
            enough = 10 * FEW if self.has_gradient else 10 * FEW // 3 + 1
            chosen = f"none are left to choose the best by, which takes {enough} problems"
        return f"{helped}; the test tells an accuracy to ± {error:.2f}; {chosen}"

    def _pair(self, record: Mapping[str, Any], source: Parent) -> dict[str, Any]:
        """Find the two texts and the label of a cross-encoder's record; empty for a model or a
        record of another kind."""
        texts = [
            name for name, value in record.items() if isinstance(value, str) and name.isidentifier()
        ]
        texts = [name for name in texts if name not in LABELS and not name.endswith("id")]
        label = next((name for name in LABELS if name in record), None)
        ranks = len(head_labels(source)) == 1
        if (
            self.task != "classification"
            or label is None
            or len(texts) < 2
            or not (ranks or record.keys().isdisjoint(PROMPTS))
        ):
            return {}
        return {"template": f"{{{texts[0]}}}\t{{{texts[1]}}}", "answer_field": label}

    def _fields(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Find which fields hold prompt and answer, as `DataSpec` has them."""
        example = '{"prompt": "2 + 3 =", "answer": 5}'
        if chat := record.keys() & {"messages", "conversations"}:
            raise FitnessError(
                f"{self.file}: {min(chat)} holds whole chats; write each problem as {example}; "
                "`chat: true` puts the prompt into the model's chat template"
            )
        prompt = next((name for name in PROMPTS if name in record), None)
        answer = next((name for name in ANSWERS if name in record), None)
        if prompt is None or (answer is None and self.task != "likelihood"):
            what = "prompt" if prompt is None else "answer"
            raise FitnessError(
                f"{self.file}: none of the fields {', '.join(record)} looks like the {what}; call "
                f"it {what}, as in {example}, or write the search file by hand, with {what}_field"
            )
        fields = {"prompt_field": prompt, "answer_field": answer}
        if prompt == "instruction" and record.get("input"):
            fields["template"] = "{instruction}\n{input}"
        if isinstance(record.get("choices"), (list, dict)):
            fields["choices"] = "choices"
        return {
            key: name for key, name in fields.items() if name != DataSpec.model_fields[key].default
        }

    @property
    def classification(self) -> dict[str, str]:
        """Section of a classification: two texts are parted as the template has them."""
        pair = "\t" in self.where.get("template", "")
        return {"task": self.task, **({"pair_separator": "\t"} if pair else {})}

    @property
    def has_long_answers(self) -> bool:
        """True where answers are texts rather than results."""
        return median(len(example.answer) for example in self.examples) > _LONG

    @property
    def has_numbers(self) -> bool:
        """True where every answer is a number."""
        return all(_NUMBER.fullmatch(example.answer) for example in self.examples)

    def form(self, *, chat: bool) -> AnswerForm:
        """Guess the form: a space, unless there is one, a chat template ends the prompt, or the
        writing has none."""
        prompts = [example.prompt for example in self.examples]
        spaced = 2 * sum(each.answer[:1].isspace() for each in self.examples) > len(prompts)
        spaceless = sum(
            prompt[-1:].isspace() or bool(_NO_SPACES.search(prompt)) for prompt in prompts
        ) * 2 > len(prompts)
        return AnswerForm("" if chat or spaced or spaceless else " ", chat)

    def slice(self, split: str, form: AnswerForm, gap: float | None = None) -> str:
        """The section of one split: a slice of the shuffled records."""
        before = itertools.takewhile(lambda other: other != split, self.sizes)
        keys = {
            "jsonl": self.file,
            **{key: field for key, field in self.where.items() if field is not None},
            **({"chat": True} if form.chat else {}),
            "shuffle_seed": 0,
            "start": sum(self.sizes[other] for other in before),
            "count": self.sizes[split],
            **({} if gap is None else {"weight": float(f"{1 / gap:.3g}")}),
        }
        return in_line(keys)


def _skills(skills: list[_Problems]) -> list[_Problems]:
    """Check that the problems of several skills can be one search's; raises `SearchError`."""
    names = Counter(each.name for each in skills)
    if (most := names.most_common(1)[0])[1] > 1:
        raise SearchError(f"data: two files are called {most[0]}; a skill is named by its file")
    tasks = {each.task: each.file for each in skills}
    if "agreement" in tasks and len(tasks) > 1:
        raise SearchError(
            f"data: {tasks['agreement']} has no answers and others have; give answers in all "
            "files, or in none"
        )
    if len(tasks) > 1:
        told = ", ".join(f"{file} is for {task}" for task, file in tasks.items())
        raise SearchError(f"data: {told}; write one search for each task")
    if all(each.needs_all for each in skills):
        for each in skills:
            each.sizes = {"search": each.count}
    elif len({tuple(each.sizes) for each in skills}) > 1:
        for each in skills:
            each.join_validation()
    return skills


def _give_prompts(skills: Sequence[_Problems], names: Sequence[str]) -> None:
    """Name prompts without answers by the sources whose they are; raises `FitnessError` unless each
    source has a file."""
    if len(skills) != len(names):
        raise FitnessError(
            f"{skills[0].file}: none of the fields {skills[0].fields} looks like the answer; call "
            'it answer, as in {"prompt": "2 + 3 =", "answer": 5}. Without answers the '
            f"{len(names)} models need a file of prompts each, in their order: {len(skills)} given"
        )
    for skill, name in zip(skills, names, strict=True):
        skill.name = name


def _holds_text(records: Sequence[Mapping[str, Any]], field: str) -> bool:
    """Tell whether a field of every record holds text."""
    return all(isinstance(record.get(field), str) and record[field] for record in records)
