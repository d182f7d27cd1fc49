"""Reads mergekit's YAML files as recipes.

A file that says something a recipe cannot is refused with the key's name. ``slices`` become a
stack, filters become patterns of tensor names, and lists of numbers are gradients in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from ..errors import RecipeError, nearest, told
from ..merging.checks import check_sources, complete
from ..merging.parameters import Parameter
from ..merging.registry import get_method
from ..recipes.recipe import Dtype, MergePart, Recipe, SlicePart, SourceRef
from ..recipes.strict_yaml import read_text, read_yaml, shown, validate

MODULE_KEYS = ("models", "slices", "parameters")
KEYS = (
    "modules",
    "merge_method",
    "models",
    "slices",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
)
SILENT = ("int8_mask",)  # changes how mergekit computes, not what
AUTO = "auto"  # the chat template that most of the models have
# The formats are their models'; the texts are this project's own.
_TEMPLATES = {file.stem: file for file in Path(__file__).with_name("chat_templates").iterdir()}
REQUIRED = ("weight", "t")  # parameters without a default in mergekit; its karcher has no weight
_FIXED = {
    "multislerp": {"eps": 1e-8}
}  # parameters of mergekit's that are constants here, at its default
Fields = dict[str, Any]
Setting = list[tuple[str | None, Any]]
Entry = tuple[SourceRef, str, Mapping[str, Any]]
"""A model of a list, with its place and what is said of it."""


@dataclass
class Converted:
    """A recipe, and what was left out on the way to it.

    Attributes:
        recipe: The recipe.
        notes: Lines for the user.
    """

    recipe: Recipe
    notes: list[str] = field(default_factory=list)


def load(file: str | Path) -> Converted:
    """Read a recipe from a file, be it a recipe or mergekit's; raises `RecipeError` that begins
    with the file's name."""
    text = read_text(file, RecipeError)
    with told(RecipeError, RecipeError, f"{file}: "):
        data = read_yaml(text, RecipeError)
        if "experts" in data and "merge_method" not in data:
            raise RecipeError(
                "a file of mergekit-moe, which puts models side by side as experts; nothing "
                "is merged there"
            )
        return (
            _read(data)
            if "merge_method" in data
            else Converted(validate(Recipe, data, RecipeError))
        )


def from_mergekit(text: str) -> Converted:
    """Read a mergekit file.

    Args:
        text: Its YAML.

    Raises:
        RecipeError: It is no such file, or says what a recipe cannot, naming the key.

    Example:
        >>> read = from_mergekit(Path("mergekit.yml").read_text())
        >>> read.recipe.merge.method
        'task_arithmetic'
    """
    return _read(read_yaml(text, RecipeError))


def _read(data: Mapping[str, Any]) -> Converted:
    if "merge_method" not in data:
        raise RecipeError("merge_method: missing; this is no mergekit file")
    if (modules := data.get("modules")) is not None:
        data = {**data, **_module(_mapping(modules, "modules"), data)}
    data = {
        key: value
        for key, value in data.items()
        if value is not None or key not in ("models", "slices")
    }
    if ("models" in data) == ("slices" in data):
        raise RecipeError("models: give either models or slices")
    return _Reader(data).read()


def _module(modules: Mapping[str, Any], data: Mapping[str, Any]) -> Fields:
    """Read a file's one module as if the file said it; its parameters count more than the
    file's."""
    if len(modules) != 1:
        raise RecipeError(
            f"modules: a recipe is of one language model (found {shown(list(modules))})"
        )
    (name, module), *_ = modules.items()
    found = {
        key: value
        for key, value in _mapping(module, f"modules.{name}").items()
        if value is not None
    }
    for key in ("models", "slices"):
        if key in found and data.get(key) is not None:
            raise RecipeError(f"{key}: given beside modules.{name}; keep one of them")
    given = (data.get("parameters"), found.get("parameters"))
    parameters = {
        key: value for part in given for key, value in _mapping(part, "parameters").items()
    }
    return {
        **{key: value for key, value in found.items() if key in MODULE_KEYS},
        "parameters": parameters,
    }


class _Reader:
    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        if not isinstance(data["merge_method"], str):
            raise RecipeError(f"merge_method: {shown(data['merge_method'])} is no name of a method")
        self.method = get_method(data["merge_method"])
        self.base = (
            _model(data["base_model"], "base_model") if data.get("base_model") is not None else None
        )
        self.sources: list[SourceRef] = []
        self.given = _mapping(data.get("parameters"), "parameters")
        self.notes: dict[str, None] = {}
        self.filtered = False
        self._note_unknown(data, KEYS, "")
        for name, module in _mapping(data.get("modules"), "modules").items():
            self._note_unknown(_mapping(module, f"modules.{name}"), MODULE_KEYS, f"modules.{name}.")

    def _note_unknown(self, given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
        for key in sorted(set(given) - set(known), key=str):
            hint = f"; {meant}" if (meant := nearest(key, known)).startswith("did you mean") else ""
            name = f"{where}{shown(key)}".replace("'", "")
            self.notes[f"{name}: mergekit has no such key; left out, as mergekit does{hint}"] = None

    @property
    def keeps_base(self) -> bool:
        """True where the base stands apart from the sources, as it does where task vectors are
        merged."""
        return self.base is not None and self.method.task_vectors

    def read(self) -> Converted:
        part = self._models() if "models" in self.data else self._slices()
        merged = len(self.sources)
        part = part.model_copy(update={"unmatched": "ignore"}) if self.filtered else part
        recipe: Fields = {"sources": self.sources, "dtype": self._dtype(), **self._tokenizer()}
        if part.slices is None and len(self.sources) > merged:
            part = part.model_copy(update={"sources": list(range(merged))})
        recipe["merge"] = part
        if self.keeps_base:
            recipe["base"] = self.base
        made = validate(Recipe, recipe, RecipeError)
        if part.slices is None:
            complete(
                self.method, part.parameters, part.options, sources=merged, has_base=self.keeps_base
            )
        for piece in part.slices or ():
            check_sources(self.method, len(piece.layers), self.keeps_base)
        return Converted(made, list(self.notes))

    def _models(self) -> MergePart:
        entries = self._entries(self.data["models"], "models")
        for _, where, item in entries:
            if "layer_range" in item:
                self.notes[
                    f"{where}.layer_range: left out, as mergekit does; layers are chosen in slices"
                ] = None
        listed = [ref for ref, _, _ in entries]
        values: list[Fields] = []
        if self.base is not None and not self.keeps_base and self.base not in listed:
            entries.append((self.base, "", {}))  # mergekit merges the base as one more model
        elif self.base is not None and self.keeps_base and set(listed) <= {self.base}:
            self.sources.append(self.base)  # nothing is merged into the base
            entries = []
            values = [{}]
        for ref, where, item in self._in_order(entries, self.base):
            given = _mapping(item.get("parameters"), where)
            if not (self.keeps_base and ref == self.base):
                self.sources.append(ref)
                values.append(self._values("source", [given, self.given], f"models ({ref})."))
        options = self._values("global", [self.given], "")
        return self._part({"method": self.method.name, "options": options, "parameters": values})

    def _in_order(self, entries: list[Entry], base: SourceRef | None) -> list[Entry]:
        """Order the entries: slerp begins at the base."""
        # t = 0 is the base_model in mergekit wherever it stands in the list, and the first source
        # in a recipe. `sorted` is stable: the others keep their order.
        if self.method.name == "slerp":
            if base is None:
                raise RecipeError("base_model: missing; slerp begins there")
            entries = sorted(entries, key=lambda entry: entry[0] != base)
        return entries

    def _entries(self, value: Any, where: str) -> list[Entry]:
        found = []
        for place, item in _items(value, where):
            if item.get("model") is None:
                raise RecipeError(f"{place}.model: missing")
            self._note_unknown(item, ("model", "parameters", "layer_range"), f"{place}.")
            found.append((_model(item["model"], f"{place}.model"), place, item))
        return found

    def _slices(self) -> MergePart:
        pieces = []
        for where, item in _items(self.data["slices"], "slices"):
            self._note_unknown(item, ("sources", "parameters", "base_model"), f"{where}.")
            own = item.get("base_model")
            base = _model(own, f"{where}.base_model") if own is not None else self.base
            if base != self.base and self.method.task_vectors:
                raise RecipeError(f"{where}.base_model: a recipe has one base")
            pieces.append(self._slice(item, where, base))
        options = self._values("global", [self.given], "")
        return self._part({"method": self.method.name, "options": options, "slices": pieces})

    def _slice(self, item: Mapping[str, Any], where: str, begin: SourceRef | None) -> SlicePart:
        own = _mapping(item.get("parameters"), f"{where}.parameters")
        layers: list[str] = []
        values: list[Fields] = []
        base: str | None = None
        entries = self._entries(item.get("sources"), f"{where}.sources")
        listed = [ref for ref, _, _ in entries]
        if self.method.name == "slerp" and begin is not None and begin not in listed:
            raise RecipeError(
                f"{where}.sources: the base_model is not among them; slerp begins there"
            )
        alone = set(listed) <= {self.base}  # nothing is merged into the base
        for ref, place, source in self._in_order(entries, begin):
            span = _layers(source.get("layer_range"), place)
            if self.keeps_base and ref == self.base:
                base = span
                if not alone:
                    continue
            if ref not in self.sources:
                self.sources.append(ref)
            layers.append(f"{self.sources.index(ref)}:{span}")
            if self.keeps_base and alone:
                values.append({})
                continue
            scopes = [_mapping(source.get("parameters"), place), own, self.given]
            values.append(self._values("source", scopes, f"{place}."))
        if self.keeps_base and base is None:
            raise RecipeError(f"{where}.sources: the base_model is not among them; name its layers")
        options = {
            name: value
            for name, value in self._values("global", [own, self.given], f"{where}.").items()
            if name in own
        }
        same = base is None or (layers and layers[0].partition(":")[2] == base)
        given = {
            "layers": layers,
            "base": None if same else base,
            "options": options,
            "parameters": values,
        }
        return validate(SlicePart, given, RecipeError)

    def _part(self, given: Fields) -> MergePart:
        part = validate(MergePart, {**given, "router": "merge"}, RecipeError)
        empty = part.slices is None and not any(part.parameters)
        pieces = [
            piece if any(piece.parameters) else piece.model_copy(update={"parameters": []})
            for piece in part.slices or ()
        ]
        return part.model_copy(
            update={"parameters": [] if empty else part.parameters, "slices": pieces or None}
        )

    def _values(self, scope: str, scopes: Sequence[Mapping[str, Any]], where: str) -> Fields:
        """The parameters of a scope from the settings that may hold them, the first of which counts
        most."""
        # mergekit looks a parameter up in the entry, then in the slice, then in the file; the first
        # that has it counts. Names that a method does not know are ignored there without a word, so
        # they are noted here.
        declared = {p.name: p for p in self.method.parameters if p.scope == scope}
        if self.method.name == "karcher":
            declared.pop("weight", None)
        for name in {name: None for settings in scopes for name in settings}:
            fixed = _FIXED.get(self.method.name, {}).get(name)
            if fixed is not None:
                for value in (settings[name] for settings in scopes if name in settings):
                    if value not in (None, fixed):
                        raise RecipeError(
                            f"parameters.{name}: {fixed:g} in {self.method.name}, and no other "
                            f"(found {shown(value)})"
                        )
            elif name not in {p.name for p in self.method.parameters} and name not in SILENT:
                self.notes[
                    (
                        f"parameters.{name}: {self.method.name} has no such parameter; left out, "
                        "as mergekit does"
                    )
                ] = None
        found = {}
        for name, parameter in declared.items():
            place = f"{where}{name}"
            given = [settings[name] for settings in scopes if settings.get(name) is not None]
            if setting := _setting(given, place):
                self.filtered |= setting[0][0] is not None
                found[name] = _value(parameter, setting, place)
            elif name in REQUIRED and (where or "slices" not in self.data):
                raise RecipeError(
                    f"{where}parameters.{name}: missing; mergekit has no default for it"
                )
        return found

    def _dtype(self) -> str | None:
        dtype = self.data.get("out_dtype") or self.data.get("dtype")
        if dtype is not None and dtype not in get_args(Dtype):
            key = "out_dtype" if self.data.get("out_dtype") else "dtype"
            raise RecipeError(
                f"{key}: {shown(dtype)} cannot be written; a recipe's result is "
                f"{', '.join(get_args(Dtype))}"
            )
        return cast(str | None, dtype)

    def _tokenizer(self) -> Fields:
        """The keys of the recipe that say which tokens, tokenizer and chat template the result
        has."""
        settings = _mapping(self.data.get("tokenizer"), "tokenizer")
        self._note_unknown(settings, ("source", "tokens", "pad_to_multiple_of"), "tokenizer.")
        source: Any = (
            settings.get("source", "union") if self.data.get("tokenizer") is not None else None
        )
        source = source if source is not None else self.data.get("tokenizer_source")
        ref = self.base if source in (None, "base", "union") else _model(source, "tokenizer_source")
        found: Fields = {}
        if source is not None:
            found["vocabulary"] = "union" if source == "union" or ref is None else "tokenizer"
            part = self._tokens(settings)
            found |= {"tokens": part} if part else {}
        if ref is not None and self.keeps_base and ref == self.base:
            found["tokenizer"] = "base"
        elif ref is not None:
            if ref not in self.sources:
                self.sources.append(ref)  # gives its tokenizer, and takes no part in the merge
            if self.sources.index(ref) > 0:
                found["tokenizer"] = self.sources.index(ref)
        template = self.data.get("chat_template")
        if template is not None:
            if not isinstance(template, str) or (
                "{" not in template and template not in (*_TEMPLATES, AUTO)
            ):
                known = ", ".join([*sorted(_TEMPLATES), AUTO])
                raise RecipeError(
                    f"chat_template: {shown(template)} is neither Jinja nor a known name; "
                    f"write one of {known}"
                )
            file = _TEMPLATES.get(template)
            text = template if file is None else file.read_text(encoding="utf-8").strip()
            found["chat_template"] = text
        return found

    def _tokens(self, settings: Mapping[str, Any]) -> Fields:
        """Read what is said of single tokens, and whose row counts where a model lacks one: that of
        the ``base_model``."""
        found: Fields = {}
        if self.base is not None and not self.keeps_base and self.base in self.sources:
            found["default"] = self.sources.index(self.base)
        if (multiple := settings.get("pad_to_multiple_of")) is not None:
            found["multiple_of"] = multiple
        rows: Fields = {}
        for token, given in _mapping(settings.get("tokens"), "tokenizer.tokens").items():
            where = f"tokenizer.tokens.{token}"
            item = _mapping(given, where)
            self._note_unknown(item, ("source", "force"), f"{where}.")
            if row := self._row(item.get("source"), f"{where}.source"):
                rows[str(token)] = {**row, "force": True} if item.get("force") else row
        return {**found, "rows": rows} if rows else found

    def _row(self, source: Any, where: str) -> Fields | None:
        """A model's row, a named row of a model's, or zeros; None: the rule's."""
        if source is None:
            return None
        kind = source.get("kind") if isinstance(source, dict) else None
        if kind == "zero":
            return {"source": "zero"}
        ref = _model(
            source["model"]
            if kind == "model_token" and source.get("model") is not None
            else source,
            where,
        )
        if self.keeps_base and ref == self.base:
            found: Fields = {"source": "base"}
        elif ref in self.sources:
            found = {"source": self.sources.index(ref)}
        else:
            raise RecipeError(f"{where}: {ref} is none of the models that are merged")
        if kind == "model_token":
            found |= {"token": source.get("token"), "id": source.get("token_id")}
        return {key: value for key, value in found.items() if value is not None}


def _items(value: Any, where: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The mappings of a list, each with its place."""
    if not isinstance(value, list) or not value:
        raise RecipeError(f"{where}: expected a list (found {shown(value)})")
    return [
        (f"{where}[{position}]", _mapping(item, f"{where}[{position}]"))
        for position, item in enumerate(value)
    ]


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: expected a mapping (found {shown(value)})")
    return value


def _model(value: Any, where: str) -> SourceRef:
    """``PATH@REVISION+ADAPTER@REVISION``, or a mapping that says the same."""
    if isinstance(value, dict):
        if value.get("override_architecture"):
            raise RecipeError(
                f"{where}.override_architecture: an architecture is not overridden here; "
                "leave it out"
            )
        parts = [value.get("model"), value.get("lora")]
    else:
        parts = (
            [*value.split("+"), None][:2] if isinstance(value, str) and value.count("+") < 2 else []
        )
    named: list[Any] = []
    for part in parts:
        pieces: list[Any]
        if isinstance(part, dict):
            pieces = [part.get("path"), part.get("revision")]
        else:
            pieces = part.split("@") if isinstance(part, str) else [part]
        named += [pieces[0] or None, *pieces[1:], *[None] * (2 - len(pieces))]
    is_text = all(item is None or isinstance(item, str) for item in named)
    if len(named) != 4 or named[0] is None or not is_text:  # more than 4: a second @
        raise RecipeError(
            f"{where}: {shown(value)} names no model; write PATH, PATH@REVISION or PATH+ADAPTER"
        )
    return SourceRef(model=named[0], revision=named[1], adapter=named[2], adapter_revision=named[3])


def _layers(value: Any, where: str) -> str:
    """``[first, last + 1]`` as the layers of a path."""
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(n, int) for n in value)
        or not 0 <= value[0] < value[1]
    ):
        raise RecipeError(f"{where}.layer_range: {shown(value)} is not [first, one after the last]")
    return f"{value[0]}" if value[1] - value[0] == 1 else f"{value[0]}-{value[1] - 1}"


def _setting(scopes: Sequence[Any], where: str) -> Setting:
    """Pairs of a filter and a value in the order in which they are tried; None: fits every
    tensor."""
    found: Setting = []
    for scope in scopes:
        if isinstance(scope, dict):
            scope = [scope]
        if not isinstance(scope, list) or (
            scope and not any(isinstance(item, dict) for item in scope)
        ):
            return [*found, (None, scope)]
        for item in scope:
            condition = _mapping(item, where)
            if "value" not in condition or set(condition) - {"value", "filter"}:
                raise RecipeError(f"{where}: expected a filter and a value (found {shown(item)})")
            name = None if condition.get("filter") == "*" else condition.get("filter")
            if not (name is None or isinstance(name, str)):
                raise RecipeError(f"{where}: the filter {shown(name)} is no text; put it in quotes")
            found.append((name, condition["value"]))
            if name is None:
                return found
    return found


def _value(parameter: Parameter, setting: Setting, where: str) -> Any:
    """The value of a recipe's parameter."""
    values = [(name, _convert(parameter, value, where)) for name, value in setting]
    if values[0][0] is None:
        return values[0][1]
    found: Fields = {}
    for name, value in values:
        if name is not None and "*" in name:
            raise RecipeError(
                f"{where}: the filter {name!r} holds a star, which mergekit takes for "
                "itself; leave it out"
            )
        # mergekit's filter is any part of a name, `*part*` here; the first filter that fits counts,
        # as the first pattern does.
        found.setdefault("default" if name is None else f"*{name}*", value)
    if "default" not in found:
        if parameter.name in REQUIRED:
            raise RecipeError(
                f"{where}: no value for tensors that no filter names, and mergekit has no "
                "default; add one"
            )
        found["default"] = parameter.default
    return found


def _convert(parameter: Parameter, value: Any, where: str) -> Any:
    """Convert one value, or a gradient, to the type that a recipe has."""
    if isinstance(value, list):
        if parameter.kind != "number":
            raise RecipeError(f"{where}: takes one value, not a gradient (found {shown(value)})")
        if nested := [item for item in value if isinstance(item, list)]:
            raise RecipeError(
                f"{where}: {shown(nested[0])} is not a number; a gradient is one list"
            )
        return [_convert(parameter, item, where) for item in value]
    if parameter.name == "rescale" and isinstance(value, (bool, int)):
        return "l1" if value else "none"
    if parameter.kind == "flag":
        return bool(value) if value in (0, 1) else value
    if parameter.kind != "number":
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as cause:
        raise RecipeError(f"{where}: {shown(value)} is not a number") from cause
    if not math.isfinite(number):
        raise RecipeError(f"{where}: {shown(value)} is not a finite number")
    return number
