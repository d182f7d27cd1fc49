"""A first search file: what can be seen in the headers of the models and in the data, with comments
for who reads it first."""

from __future__ import annotations

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
from ...checkpoints.open import config_name, open_source
from ...checkpoints.source import Source
from ...checkpoints.unchanged import twins
from ...errors import FitnessError, SearchError, SourceError
from ...fitness.data.loading import load_examples
from ...fitness.data.records import read_jsonl
from ...fitness.data.spec import DataSpec
from ...fitness.registry import parse_task
from ...fitness.tasks.classification import label_names, label_shares
from ...recipes.recipe import MergePart, Recipe, SourceRef, labels_of
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
TASKS = {
    "classification": "the log-probability of the right label, which has a gradient",
    "retrieval": (
        "the log-probability of a prompt's own answer among all answers, by the cosine of pooled "
        "hidden states"
    ),
    "generation": (
        "1 for a right answer, 0 for another; an encoder-decoder writes, and there is no gradient"
    ),
}
# More tell little, and every candidate has to answer those of the search.
MOST = {"search": 128, "validation": 200, "test": 400}
BASELINES = ("average", "prompt", "alone")  # what costs little, or answers the first question
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
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
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
            best source, where that is measured.
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
    said = list[str]()
    if given is None:
        given, said = _named_base(opened)
    everyone = [*opened, *([open_source(given)] if given is not None else [])]
    depths = [source.layer_count for source in everyone]
    by_token = _check_together(opened, everyone[len(opened) :])
    templates = [most_common_template([source.folder]) is not None for source in everyone]
    based = given is not None

    def written(form: AnswerForm, gaps: Mapping[str, float]) -> str:
        lines = [
            *_models(
                depths, refs, given, by_token=by_token, device=device, dtype=opened[0].config.dtype
            ),
            *problems.fitness(form.separator),
            *_splits(skills, gaps, chat=form.chat, some=any(templates)),
            *_compare(depths, len(opened), based=based, shots=problems.takes_shots),
            *_afterwards(depths, len(opened), gradient=problems.has_gradient, based=based),
        ]
        return "\n".join(lines) + "\n"

    text = written(problems.form(chat=all(templates)), {})
    config = parse_yaml(SearchConfig, text, SearchError)
    if measure is not None and problems.task not in TASKS:
        form, gaps, figures = measure(config)
        said += figures
        text = written(form, gaps)
    found = (
        *_of_sizes(opened if len(set(depths)) == 1 else everyone),
        *(line for each in skills for line in each.in_words()),
        *said,
        *(
            f"warning: {line}"
            for line in twins(everyone, [*labels_of(refs), "the base"], download=False)
        ),
    )
    return Draft(text, found)


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
    bases = {
        ref.model_copy(update={"adapter": None, "adapter_revision": None})
        for ref in refs
        if ref.adapter is not None
    }
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
    if (
        base is not None
        and (folder / "adapter_config.json").is_file()
        and not (folder / "config.json").exists()
    ):
        return SourceRef(model=base, adapter=name)
    model, _, adapter = (name, "", "") if folder.exists() else name.partition("+")
    pairs = (
        (part, "", "") if Path(part).exists() else part.partition("@") for part in (model, adapter)
    )
    (model, _, revision), (adapter, _, at) = pairs
    return SourceRef(
        model=model, revision=revision or None, adapter=adapter or None, adapter_revision=at or None
    )


def _models(
    depths: Sequence[int],
    refs: Sequence[SourceRef],
    given: SourceRef | None,
    *,
    by_token: bool,
    device: str,
    dtype: Any,
) -> list[str]:
    """Write the beginning of the file: the look, the models, and where they run."""
    use = "the common ancestor: merged are the differences from it"
    if len(set(depths)) > 1:
        use = "the common ancestor, beside which the result is measured"
    return [
        (
            "# A quick look whether these models merge: it costs what 48 models cost to score on "
            "the search examples, and fills in"
        ),
        (
            "# what is not said below. Afterwards take this line out, and say more: see the end "
            "of the file."
        ),
        "optimize: quick",
        (
            '# about: "..." # what the model is for, one sentence in quotes; its card and its '
            "Space open with it"
        ),
        *_space(depths, given is not None),
        "sources: # the fine-tunes that are merged",
        *(f"  - {in_line(ref)}" for ref in refs),
        *([f"base: {in_line(given)} # {use}"] if given else []),
        *_output(by_token=by_token, blurred=device == "cpu" and getattr(dtype, "itemsize", 4) < 4),
        "# compute: {device: cuda:0} # the models are run on the processor; a GPU is quicker"
        if device == "cpu"
        else f"compute: {in_line({'device': device})}",
    ]


def _output(*, by_token: bool, blurred: bool) -> list[str]:
    """The dtype and the vocabulary, where the models' own will not do."""
    said = {
        "dtype: float32": blurred
        and "half precision blurs scores on a processor; on a GPU take it out",
        "vocabulary: union": by_token
        and "they have not the same tokens: rows are matched by token",
    }
    chosen = {key: why for key, why in said.items() if why}
    return [f"output: {{{', '.join(chosen)}}} # {'; '.join(chosen.values())}"] if chosen else []


def _space(depths: Sequence[int], based: bool) -> list[str]:
    if len(set(depths)) > 1:
        found = ", ".join(map(str, depths))
        return [
            (
                f"space: dfs # a path through their layers, which are {found}: only models of "
                "one depth can be merged"
            )
        ]
    lines = [
        (
            "space: ps # how much of each model's weights; dfs: which layer of which model runs "
            "next; hybrid: both"
        )
    ]
    return (
        lines
        if based
        else [
            *lines,
            "merge: {method: linear} # a weighted mean; with a base, merging differences is better",
        ]
    )


def _compare(depths: Sequence[int], count: int, *, based: bool, shots: bool) -> list[str]:
    """Write what the result is compared with, and what the dear part of that costs."""
    lone = based or len(set(depths)) > 1  # a weighted mean of one model is that model
    wanted = {"average": True, "prompt": shots, "alone": lone}
    chosen = [name for name in BASELINES if wanted[name]]
    said = f"alone: the search again over each model by itself, {count} times its cost"
    why = f" # {said}; does the result need them all?" if lone else ""
    return [f"compare: {{baselines: [{', '.join(chosen)}]}}{why}"]


def _afterwards(depths: Sequence[int], count: int, *, gradient: bool, based: bool) -> list[str]:
    merged = len(set(depths)) == 1
    cost = "# in scores of all search examples"
    lines = [
        "After the quick look, in place of optimize"
        + (" and merge above:" if merged and not based else " above:")
    ]
    path = "path: {kind: gates, repetitions: 2} # how often a layer may run"
    linear = [] if based else ["method: linear"]
    if gradient:
        if not merged:
            lines.append(path)
        elif not based:
            lines.append(f"merge: {{{linear[0]}}}")
        lines.append(f"optimize: [{{by: gradient, evaluations: 150}}] {cost}")
    if gradient and merged:
        lines.append(
            "Or, without a gradient (task: generation) every number costs, so that blocks "
            "share theirs:"
        )
    if merged:
        groups = -(-depths[0] // max(1, depths[0] // 8))
        numbers = f"{count} x {groups} weights, and those of embeddings and head"
        lines.append(f"merge: {{{', '.join([*linear, f'groups: {groups}'])}}} # {numbers}")
    if merged or not gradient:
        lines += [*([] if merged else [path]), f"optimize: [{{evaluations: 500}}] {cost}"]
    if gradient:
        both = " and merge+lora" if merged and based else ""
        lines.append(
            f"Is a fine-tune at the same cost better? lora{both} among the baselines says it."
        )
    if gradient and merged:
        lines.append(
            "Or, so that each model keeps what it does, without right answers: task: "
            "agreement, on prompts of each."
        )
    return [f"# {line}" for line in lines]


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
        records = [record for _, record in read_jsonl(file)]
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
        if all(
            _MARK in str(record.get(self.where.get("answer_field", "answer"))) for record in records
        ):
            self.where["answer_after"] = _MARK
        self.examples = load_examples(DataSpec(jsonl=file, **self.where))
        for example in self.examples if self.task == "classification" else ():
            label_shares(example, label_names(sources[0].config))
        prompts = Counter(" ".join(example.prompt.split()) for example in self.examples)
        if (most := prompts.most_common(1)[0])[1] > 1:
            raise FitnessError(
                f"{file}: {sum(times > 1 for times in prompts.values())} prompts occur more "
                f"than once, such as {most[0]!r:.60}"
                "; keep one of each, so that a model is not tested on what it was searched with"
            )
        self.sizes = self._shares()

    # A gradient gets better with each example that it sees, and ends at one point, which needs no
    # choosing: on a pair of tiny models 8, 16, 32, 63 and 126 examples gave an accuracy of .14,
    # .27, .45, .66 and .71, and 31 or 63 more for validation changed it by .01 at most. So half
    # are searched with, and what a good test does not need is for validation. Candidates of a
    # black box are many, and the best on the search examples is so by luck in part.
    def _shares(self) -> dict[str, int]:
        """Number of examples per split."""
        half = self.count // 2
        left = self.count - min(max(half, min(16, self.count - LEAST)), MOST["search"])
        part = self.count * 3 // 10
        chosen = min(part, MOST["validation"], left - _TESTED)
        if not self.has_gradient and part >= FEW:
            left = self.count - min(part, MOST["search"])
            chosen = min(part, MOST["validation"])
        sizes = {"search": self.count - left}
        if chosen >= FEW:
            sizes["validation"] = chosen
            left -= chosen
        return {**sizes, "test": min(left, MOST["test"])}

    @property
    def name(self) -> str:
        """Name of the skill: that of its file."""
        return Path(self.file).stem

    def join_validation(self) -> None:
        """Give what is for validation to the test: another skill has none to spare."""
        self.sizes["test"] += self.sizes.pop("validation", 0)

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
        error = 0.5 / math.sqrt(self.sizes["test"])
        helped = f"a search gains by each of the first {MOST['search']}"
        chosen = "validation guards against luck"
        if "validation" not in self.sizes:
            chosen = "none are left to choose the best by"
        return [
            f"{self.count} problems in {self.file}: {sizes}",
            f"{helped}; the test tells an accuracy to ± {error:.2f}; {chosen}",
        ]

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
                f"{self.file}: {min(chat)} holds whole chats; write each problem as "
                f"{example}; `chat: true` puts the prompt "
                "into the model's chat template"
            )
        prompt = next((name for name in PROMPTS if name in record), None)
        answer = next((name for name in ANSWERS if name in record), None)
        if prompt is None or answer is None:
            what = "prompt" if prompt is None else "answer"
            raise FitnessError(
                f"{self.file}: none of the fields {', '.join(record)} looks like the {what}; "
                f"call it {what}, as in {example}, "
                f"or write the search file by hand, with {what}_field"
            )
        found = {"prompt_field": prompt, "answer_field": answer}
        if prompt == "instruction" and record.get("input"):
            found["template"] = "{instruction}\n{input}"
        if isinstance(record.get("choices"), (list, dict)):
            found["choices"] = "choices"
        return {
            key: name for key, name in found.items() if name != DataSpec.model_fields[key].default
        }

    def fitness(self, separator: str) -> list[str]:
        """The task's section."""
        answers = [example.answer for example in self.examples]
        long = median(map(len, answers)) > _LONG
        numbers = all(_NUMBER.fullmatch(answer) for answer in answers)
        between = (
            f"  separator: {json.dumps(separator)} # between prompt and answer; scored as the "
            "answer's beginning"
        )
        if self.task in TASKS:
            pair = "\t" if "\t" in self.where.get("template", "") else None
            extract = "all" if self.task == "generation" else None
            said = {"task": self.task, "pair_separator": pair, "extract": extract}
            return [
                (
                    f"fitness: {in_line({key: value for key, value in said.items() if value})} # "
                    f"{TASKS[self.task]}"
                )
            ]
        if self.task == "multiple_choice":
            score = (
                "  score: log_probability # of the right choice among them, which is smooth; the "
                "accuracy is told beside it"
            )
            return ["fitness:", "  task: multiple_choice", score, between]
        task = (
            "  task: likelihood # the log-probability of the right answer: one forward pass a "
            "problem, and it has a gradient"
        )
        lines = ["fitness:", task, between]
        if long:
            lines.append(
                "  normalize: token # answers are long: the mean over an answer's tokens, so "
                "that each counts alike"
            )
        if numbers:
            lines += [
                (
                    "  # Where a model has to reason first, in place of the above: it writes, "
                    "and the last number counts."
                ),
                "  # task: generation",
                "  # max_new_tokens: 256 # where an answer is cut",
            ]
        return lines

    def form(self, *, chat: bool) -> AnswerForm:
        """Guess the form: a space, unless there is one, a chat template ends the prompt, or the
        writing has none."""
        prompts = [example.prompt for example in self.examples]
        spaced = 2 * sum(each.answer[:1].isspace() for each in self.examples) > len(prompts)
        spaceless = sum(
            prompt[-1:].isspace() or bool(_NO_SPACES.search(prompt)) for prompt in prompts
        ) * 2 > len(prompts)
        return AnswerForm("" if chat or spaced or spaceless else " ", chat)

    def comments(self, *, chat: bool, some: bool) -> list[str]:
        """Comments that say what the keys of the data mean."""
        meant = {
            "answer_after": "what follows it is the answer, without the reasoning before it.",
            "choices": "the field with what there is to choose from.",
            "template": "the prompt, with fields of the record in braces.",
            "gloss_field": "the prompt in a language that readers know; no model sees it.",
        }
        lines = [f"  # {key}: {text}" for key, text in meant.items() if key in self.where]
        if chat:
            lines.append("  # chat: true puts the prompt into the model's chat template.")
        if some and not chat:
            lines.append(
                "  # `chat: true` puts the prompt into the chat template, if all models have one."
            )
        if "prompt_field" in self.where or "answer_field" in self.where:
            lines.append("  # prompt_field and answer_field name the fields that are read.")
        return lines

    def slice(self, split: str, *, chat: bool, weight: float | None = None) -> str:
        """The section of one split: a slice of the shuffled records."""
        before = itertools.takewhile(lambda other: other != split, self.sizes)
        keys = {
            "jsonl": self.file,
            **self.where,
            **({"chat": True} if chat else {}),
            "shuffle_seed": 0,
            "start": sum(self.sizes[other] for other in before),
            "count": self.sizes[split],
            **({} if weight is None else {"weight": weight}),
        }
        return in_line(keys)


def _skills(skills: list[_Problems]) -> list[_Problems]:
    """Check that the problems of several skills can be one search's; raises `SearchError`."""
    names = Counter(each.name for each in skills)
    if (most := names.most_common(1)[0])[1] > 1:
        raise SearchError(f"data: two files are called {most[0]}; a skill is named by its file")
    if len(tasks := {each.task: each.file for each in skills}) > 1:
        told = ", ".join(f"{file} is for {task}" for task, file in tasks.items())
        raise SearchError(f"data: {told}; write one search for each task")
    if len({tuple(each.sizes) for each in skills}) > 1:
        for each in skills:
            each.join_validation()
    return skills


def _splits(
    skills: Sequence[_Problems], gaps: Mapping[str, float], *, chat: bool, some: bool
) -> list[str]:
    """The data's section: slices of one shuffle of each file."""
    chosen = "and chooses"
    if "validation" in skills[0].sizes:
        chosen = "validation chooses among the best"
    lines = [
        f"data: # search scores the candidates, {chosen}, test is used once, at the end",
        "  # Each takes count records from start on, of all in the order of "
        "shuffle_seed, so that none is in two.",
        *skills[0].comments(chat=chat, some=some),
    ]
    if len(skills) == 1:
        slices = (f"  {split}: {skills[0].slice(split, chat=chat)}" for split in skills[0].sizes)
        return [*lines, *slices]
    if gaps:
        lines.append("  # weight: 1 over what the best model has more than the base, so that no")
        lines.append("  # skill outweighs another.")
    for split in skills[0].sizes:
        lines.append(f"  {split}:")
        lines.append("    sources: # the skills that the result is to have")
        for each in skills:
            gap = gaps.get(each.name)
            weight = None if gap is None else float(f"{1 / gap:.3g}")
            section = each.slice(split, chat=chat, weight=weight)
            lines.append(f"      {json.dumps(each.name)}: {section}")
    return lines


def _holds_text(records: Sequence[Mapping[str, Any]], field: str) -> bool:
    """Tell whether a field of every record holds text."""
    return all(isinstance(record.get(field), str) and record[field] for record in records)
