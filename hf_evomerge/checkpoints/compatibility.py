"""Checks that checkpoints can be merged, from their configs, headers and tokenizers alone, before
any download or work.

What makes a merge impossible is an error that names both sides; what makes it doubtful is a
warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..errors import SourceError, shown, told
from ..recipes.recipe import with_optional
from .checkpoint import Parent
from .quantized import check_quantization
from .sentence import SentenceModule

_SAME_SETTINGS = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "num_experts_per_tok",
)
_KEPT_FROM_FIRST = (
    "rope_parameters",
    "partial_rotary_factor",
    "sliding_window",
    "max_position_embeddings",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "norm_epsilon",
    "logits_scaling",
    "prompts",
    "default_prompt_name",
    "similarity_fn_name",
    "max_seq_length",  # of sentence-transformers
)
_SHOWN = 6
_OTHER_VOCABULARY = (
    "write vocabulary: union (tokenizer_source: union in mergekit's files), which matches rows "
    "by token"
)
HAS_A_PATH = (
    "a merged model with a path of its own; name the models that it was made from, or a copy "
    "that `fold` has written"
)


def check_mergeable(
    sources: Sequence[Parent],
    base: Parent | None = None,
    *,
    same_depth: bool = True,
    same_vocabulary: bool = True,
) -> None:
    """Raise `SourceError` unless the checkpoints can be merged tensor by tensor. Reads configs and
    headers, no weights.

    The first source must have the tensors that its architecture asks for. Checked against it:
    architecture, number of layers, heads, vocabulary, tied head, the names of the tensors, their
    shapes, and that all weights are plain floating-point numbers (float16 and bfloat16 may be
    mixed).

    Args:
        sources: Sources that take part.
        base: Their base.
        same_depth: Whether they must have as many layers; without it the layers' tensors are left
            to the caller.
        same_vocabulary: Whether they must have as many tokens; without it, the tokens that they
            share must be the same. The same tokens under other ids are refused either way.
    """
    first = sources[0]
    for source in with_optional(sources, base):
        if source.config.model_type == "evo_merged":
            raise SourceError(f"{source}: {HAS_A_PATH}")
        check_quantization(source.config, source, "merged")
        source.changes  # noqa: B018  raises where an adapter does not fit
        if source is first:
            continue
        moves = bool(first.layer_order or source.layer_order)
        if same_depth and moves and first.layer_count != source.layer_count:
            moved, plain = (first, source) if first.layer_order else (source, first)
            raise SourceError(
                f"{moved}: its layer_replication makes {moved.layer_count} layers, and {plain} has "
                f"{plain.layer_count}; merge models of as many layers"
            )
        complaints = list(_setting_differences(first, source, same_depth, same_vocabulary))
        if same_depth:
            complaints += tensor_differences(first, source, same_vocabulary)
        other = _first_other_token(first, source, same_vocabulary)
        complaints += [other] if other is not None else []
        if complaints:
            more = f"; and {len(complaints) - _SHOWN} more" if len(complaints) > _SHOWN else ""
            hint = _component_hint(first, source) if other is None else ""
            raise SourceError(
                f"{'; '.join(complaints[:_SHOWN])}{more}; sources must be fine-tunes of one "
                f"base{hint}"
            )
    first.architecture_warnings  # noqa: B018  raises where tensors are missing, or of other shapes than its config says
    for name, info in first.tensors.items():
        if not info.is_float and info.dtype not in ("BOOL", "I64", "I32", "U8"):
            raise SourceError(
                f"{first}: {name} is {info.dtype}, which cannot be merged; give the model in "
                "bfloat16 or float32"
            )


def find_warnings(
    sources: Sequence[Parent], base: Parent | None = None, owner: Parent | None = None
) -> list[str]:
    """Return warnings about a merge of these checkpoints, one line each; nothing here makes it
    impossible.

    Args:
        sources: Sources that take part.
        base: Their base.
        owner: The one whose tokenizer and generation settings go with the result; the first by
            default.
    """
    found: list[str] = []
    first = sources[0]
    everyone = with_optional(sources, base)
    for source in everyone:
        found += _other_base(source)
        if source is not first:
            found += _differing_settings(first, source)
    owner = owner if owner is not None else first
    kept = Tokenizer.of(owner)
    for source in everyone:
        if source is not owner and (line := _other_tokenizer(owner, kept, source)) is not None:
            found.append(line)
    return [*found, *_end_of_text(owner, kept)]


@dataclass(frozen=True)
class Tokenizer:
    """Tokens and merges of tokenizer.json.

    Attributes:
        tokens: The token of each id.
        merges: Merges of pairs, where the tokenizer does that.
    """

    tokens: dict[int, str]
    merges: Any

    @classmethod
    def of(cls, source: Parent) -> Tokenizer | None:
        """The tokenizer of a source; None where there is no tokenizer.json that can be read."""
        data = _json(source, "tokenizer.json")
        return None if data is None else cls.read(data)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Tokenizer | None:
        """Read the content of a tokenizer.json; None where it cannot be read."""
        try:
            vocabulary = data["model"]["vocab"]
            pairs = (
                vocabulary.items()
                if isinstance(vocabulary, dict)
                else ((piece[0], n) for n, piece in enumerate(vocabulary))
            )
            tokens = {int(number): str(token) for token, number in pairs}
            tokens.update(
                {
                    int(added["id"]): str(added["content"])
                    for added in data.get("added_tokens") or ()
                }
            )
            return cls(tokens, data["model"].get("merges"))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            return None


def head_labels(source: Parent) -> list[str]:
    """The names of a classifier's labels, in the order of its head's rows."""
    return [str(name) for _, name in sorted((source.config.id2label or {}).items())]


def compared_labels(source: Parent) -> list[str]:
    """Labels of a classifier as they are compared: without case."""
    return [name.casefold() for name in head_labels(source)]


def _component_hint(first: Parent, other: Parent) -> str:
    """Hint at a part where one model has parts, and the other has none."""
    parts = [bool(source.config.sub_configs) for source in (first, other)]
    if first.part is not None or other.part is not None or len(set(parts)) == 1:
        return ""
    return "; of a model with parts write component: text, to merge its language part alone"


def _setting_differences(
    first: Parent, other: Parent, same_depth: bool, same_vocabulary: bool
) -> Iterator[str]:
    pairs: list[tuple[str, Any, Any]] = []
    if first.part is None:  # of a part, names and shapes decide
        pairs.append(("architecture", first.config.model_type, other.config.model_type))
    if same_depth and not first.same_folder(other):
        pairs.append(("number of layers", first.layer_count, other.layer_count))
    if same_vocabulary:
        pairs.append(("vocabulary size", first.vocab_size, other.vocab_size))
    pairs.append(("tie_word_embeddings", first.is_tied, other.is_tied))
    yield from _module_differences(first, other)
    labels = compared_labels(first)
    others = compared_labels(other)
    if first.part is None and labels != others and sorted(labels) == sorted(others):
        yield (
            f"the labels of {other} are those of {first} in another order, "
            f"{_labels_text(other)} and "
            f"{_labels_text(first)}: rows of their heads do not match; sort them alike"
        )
    pairs += [
        (key, getattr(first.text_config, key, None), getattr(other.text_config, key, None))
        for key in _SAME_SETTINGS
    ]
    for what, here, there in pairs:
        if here != there:
            yield f"{what} differs: {here} in {first}, {there} in {other}"
    if same_vocabulary and first.vocab_size != other.vocab_size:
        yield _OTHER_VOCABULARY


def _weighing_modules(source: Parent) -> list[SentenceModule]:
    """The modules after an encoder, but for those that may be there or not."""
    modules = source.sentence.modules
    return [one for one in modules if one.kind not in ("Normalize", "Dropout")]


def _module_names(modules: Sequence[SentenceModule]) -> str:
    return ", ".join(f"{one.folder} ({one.kind})" for one in modules) or "none"


def _module_differences(first: Parent, other: Parent) -> Iterator[str]:
    """Say why the modules after two encoders do not go together; a plain model, which names none,
    goes with any."""
    here = _weighing_modules(first)
    there = _weighing_modules(other)
    if not first.sentence.modules or not other.sentence.modules:
        return
    if [one.kind for one in here] != [one.kind for one in there]:
        yield (
            f"modules after the encoder differ: {_module_names(here)} in {first}, "
            f"{_module_names(there)} in {other}"
        )
        return
    for one, two in zip(here, there, strict=True):
        for key, value in one.settings.items():
            if two.settings[key] != value:
                yield f"{one.folder}: {key} is {value} in {first}, {two.settings[key]} in {other}"


def tensor_differences(first: Parent, other: Parent, same_vocabulary: bool = True) -> Iterator[str]:
    """Say which tensors of two checkpoints do not match, one line each; rows may differ where
    vocabularies do."""
    here, there = ((source.config.architectures or ["unknown"])[0] for source in (first, other))
    if here != there and first.tensors.keys() != other.tensors.keys():
        yield f"{other} was saved from {there}, {first} from {here}"
    for name, info in first.tensors.items():
        match = other.tensors.get(name)
        rows = not same_vocabulary and info.shape[:1] == (first.vocab_size,) and match is not None
        rows = rows and match is not None and match.shape[:1] == (other.vocab_size,)
        if match is None:
            if (
                info.is_float
            ):  # a table of positions, or a mask, is not merged, and newer files lack it
                yield f"tensor {name} of {first} is missing in {other}"
        elif info.shape[rows:] != match.shape[rows:]:
            yield f"{name}: shape {list(info.shape)} in {first}, {list(match.shape)} in {other}"
        elif info.is_float != match.is_float:
            yield f"{name}: {info.dtype} in {first}, {match.dtype} in {other}"
    for name, info in other.tensors.items():
        if name not in first.tensors and info.is_float:
            yield f"tensor {name} of {other} is missing in {first}"


def _other_base(source: Parent) -> Iterator[str]:
    """An adapter that says that it was trained on a model of another name."""
    named = (
        str(source.adapter.config.get("base_model_name_or_path") or "")
        if source.adapter is not None
        else ""
    )
    last = PurePath(named).name
    if last and last not in (PurePath(source.ref.model).name, source.folder.resolve().name):
        yield (
            f"{source}: the adapter says that it is of {shown(named)}; on another base it does "
            "something else"
        )


def _differing_settings(first: Parent, other: Parent) -> Iterator[str]:
    for key in _KEPT_FROM_FIRST:
        here, there = (
            getattr(one.text_config, key, one.sentence.settings.get(key)) for one in (first, other)
        )
        if here != there:
            yield (
                f"{key} differs: {here} in {first}, {there} in {other}; the result has that of "
                "the first"
            )
    ends = [
        source.sentence.modules[-1].kind for source in (first, other) if source.sentence.modules
    ]
    if len(set(ends)) > 1:  # Normalize or Dropout, as others have to be the same
        yield (
            f"the last module is {ends[0]} in {first}, {ends[1]} in {other}; the result has the "
            "modules of the first"
        )
    yield from _differing_labels(first, other)
    here = _dtypes(first)
    there = _dtypes(other)
    if here != there:
        yield f"dtype differs: {here} in {first}, {there} in {other}"


def _differing_labels(first: Parent, other: Parent) -> Iterator[str]:
    """Say that the labels of two heads differ."""
    labels = compared_labels(first)
    others = compared_labels(other)
    if first.part is not None or labels == others:
        return
    yield (
        f"labels differ: {_labels_text(first)} in {first}, {_labels_text(other)} in {other}: rows "
        "of their heads mean other things, unless a name is missing; name them alike in id2label "
        "of config.json, or write component: to merge bodies alone"
    )


def _labels_text(source: Parent) -> str:
    return ", ".join(head_labels(source)[:4])


def _dtypes(source: Parent) -> str:
    return ", ".join(sorted({info.dtype for info in source.tensors.values() if info.is_float}))


def _first_other_token(first: Parent, other: Parent, same_vocabulary: bool) -> str | None:
    """Describe the first id of both models that stands for different tokens; or give None."""
    here = Tokenizer.of(first)
    there = Tokenizer.of(other)
    if here is None or there is None or here.tokens == there.tokens:
        return None
    if same_vocabulary and sorted(here.tokens.values()) != sorted(there.tokens.values()):
        return None  # tokens of their own, of which there is a warning
    for number in range(min(first.vocab_size, other.vocab_size)):
        a = here.tokens.get(number)
        b = there.tokens.get(number)
        if None not in (a, b) and a != b:
            return (
                f"token {number} is {a!r} in {first}, {b!r} in {other}, so their rows do not match"
            )
    return None


def check_tokenizer(source: Parent) -> None:
    """Raise `SourceError` where a source's `tokenizer.json`, which goes with a result, holds no
    tokenizer."""
    import tokenizers

    where = f"{source}: tokenizer.json holds no tokenizer: "
    # the library has no class of its own for it
    with told(SourceError, Exception, where, "; download it again"):
        if (file := source.beside / "tokenizer.json").is_file():
            tokenizers.Tokenizer.from_file(str(file))


def _other_tokenizer(owner: Parent, here: Tokenizer | None, source: Parent) -> str | None:
    there = Tokenizer.of(source)
    if here is None or there is None or here == there:
        return None
    if here.tokens == there.tokens:
        return f"tokenizers differ in their merges: {owner} and {source}; that of {owner} is kept"
    ids = sorted(here.tokens.keys() | there.tokens.keys())
    number = next(n for n in ids if here.tokens.get(n) != there.tokens.get(n))
    return (
        f"tokenizers differ: {len(here.tokens)} tokens in {owner}, {len(there.tokens)} in "
        f"{source}; first at {number}: "
        f"{here.tokens.get(number)!r} and {there.tokens.get(number)!r}; that of {owner} is kept"
    )


def _end_of_text(owner: Parent, kept: Tokenizer | None) -> Iterator[str]:
    """Generation stops at ids that should be tokens, the tokenizer's end of text among them."""
    generation = _json(owner, "generation_config.json")
    if generation is None or kept is None:
        return
    tokens = kept.tokens
    given: Any = generation.get("eos_token_id")
    ends = given if isinstance(given, list) else [given]
    end_text = (_json(owner, "tokenizer_config.json") or {}).get("eos_token")
    end_text = end_text.get("content") if isinstance(end_text, dict) else end_text
    if given not in (None, []) and end_text not in {None, *map(tokens.get, ends)}:
        named = ", ".join(f"{end} ({tokens.get(end)!r})" for end in ends)
        yield (
            f"generation_config.json of {owner} stops at {named}, but its tokenizer's eos_token "
            f"is {end_text!r}"
        )


def _json(source: Parent, name: str) -> dict[str, Any] | None:
    try:
        return source.read_json(name)
    except SourceError:
        return None
