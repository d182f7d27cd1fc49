"""The pages of the reference, written from the code: keys of the files, commands and their options,
public names of Python."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import typer
import yaml
from schemas import SCHEMAS

import hf_evomerge
from hf_evomerge import cli, fitness, mergekit, merging, modeling
from hf_evomerge.merging.table import methods_table

PARTS = {  # the rooms of the package, in the order of their pages
    "search": ("Searching", "Run a search, look at its study, be told what happens."),
    "recipes": ("Recipes", "A recipe in Python: read, written, made by hand."),
    "building": (
        "Building",
        "From a recipe to a model on disk; from a merged model to a plain one.",
    ),
    "checkpoints": ("Checkpoints", "Sources, and what is in them."),
    "merging": ("Merge methods", "Each method as a function of plain tensors, and how to add one."),
    "routing": (
        "Paths over resident models",
        "Candidates of a search in data flow space, without copies.",
    ),
    "modeling": ("The model class", "What `from_pretrained` loads."),
    "fitness": ("Fitness", "Tasks, examples, scores, and comparisons of scores."),
    "hub": ("The Hub", "Publish, show, rebuild."),
    "mergekit": ("mergekit's files", "Read and written."),
    "errors": (
        "Errors",
        "What is raised where something is wrong with a file, a model or a request.",
    ),
}
WHOLE_FILES = {
    "recipe": "Recipe",
    "search": "SearchConfig",
}  # the settings class of each kind of file
WHOLE = ["Study"]  # classes of two files, shown with what they inherit
MORE = {  # modules whose names are public as well
    "fitness": fitness.__all__,
    "merging": [name for name in merging.__all__ if name not in merging.METHODS],
    "mergekit": mergekit.__all__,
    "modeling": modeling.__all__,
}


def pages() -> dict[str, str]:
    """Every page by its name."""
    files = {f"{name}-file": file_page(name) for name in ("search", "recipe")}
    return {**files, "commands": commands_page(), **python_pages()}


# Files


def file_page(name: str) -> str:
    """The keys of a kind of YAML file, section by section, from its JSON schema."""
    schema = SCHEMAS[name]()
    places = _places(schema)
    parts = [
        f"# Keys of a {name} file\n",
        (
            f"From `hf_evomerge/schemas/{name}.schema.json` of an installed package, which "
            "editors read too.\n"
        ),
        *_section("Top level", schema, places, WHOLE_FILES[name]),
    ]
    for kind, where in places.items():
        parts += _section(f"`{where[0]}`", schema["$defs"][kind], places, kind)
    return "\n".join(parts)


def sections() -> dict[str, str]:
    """Map the anchor of each settings class to the page of the reference that has its table."""
    return {
        kind.lower(): f"reference/{name}-file.md"
        for name, whole in WHOLE_FILES.items()
        for kind in (whole, *SCHEMAS[name]()["$defs"])
    }


def table(name: str) -> str:
    """Make the table that a page has where it says ``generated: NAME``: of merge methods, or of a
    task's settings."""
    if name == "methods":
        return methods_table()
    part = SCHEMAS["search"]()["$defs"][fitness.get_task(name).spec_type.__name__]
    return "\n".join(_rows(name, part)).replace("](#", "](../reference/search-file.md#")


def _places(schema: dict[str, Any]) -> dict[str, list[str]]:
    """Where in a file each kind of section stands, in the order in which one comes to them."""
    found: dict[str, list[str]] = {}
    waiting = [("", schema)]
    while waiting:
        prefix, part = waiting.pop(0)
        for key, value in part.get("properties", {}).items():
            for kind, suffix in _refs(value):
                task = schema["$defs"][kind]["properties"].get("task", {}).get("const")
                place = f"{prefix}{key}{suffix}" + (f": {{task: {task}}}" if task else "")
                if kind not in found:
                    waiting.append((f"{prefix}{key}{suffix}.", schema["$defs"][kind]))
                if place not in found.setdefault(kind, []):
                    found[kind].append(place)
    return found


def _refs(value: dict[str, Any], suffix: str = "") -> Iterator[tuple[str, str]]:
    if "$ref" in value:
        yield value["$ref"].rpartition("/")[2], suffix
    for choice in (
        *value.get("anyOf", ()),
        *value.get("oneOf", ()),
        *([value["then"]] if "then" in value else []),
    ):
        yield from _refs(choice, suffix)
    if isinstance(value.get("items"), dict):
        yield from _refs(value["items"], suffix + "[]")
    if isinstance(value.get("additionalProperties"), dict):
        yield from _refs(value["additionalProperties"], suffix + ".NAME")


def _section(
    title: str, part: dict[str, Any], places: dict[str, list[str]], kind: str | None = None
) -> list[str]:
    anchor = f" {{#{kind.lower()}}}" if kind else ""
    also = [f"`{place}`" for place in places.get(kind or "", [])[1:]]
    also = [f"Here too: {', '.join(also)}.\n"] if also else []
    return [f"## {title}{anchor}\n", described(part, title) + "\n", *also, *_rows(title, part), ""]


def _rows(title: str, part: dict[str, Any]) -> list[str]:
    required = part.get("required", ())
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, value in part["properties"].items():
        meaning = _cell(described(value, f"{title}: {key}"))
        rows.append(f"| `{key}` | {_type(value)} | {_default(key, value, required)} | {meaning} |")
    return rows


def described(part: dict[str, Any], where: str) -> str:
    """What is said of a key or section.

    Raises:
        LookupError: Nothing is.
    """
    if not part.get("description"):
        raise LookupError(f"{where}: has no description; write it under the field")
    return str(part["description"])


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        kind = value["$ref"].rpartition("/")[2]
        return f"[section](#{kind.lower()})"
    if choices := value.get("anyOf", value.get("oneOf")):
        kinds = list(
            dict.fromkeys(_type(choice) for choice in choices if choice.get("type") != "null")
        )
        sections = [kind for kind in kinds if kind.startswith("[section]")]
        if len(sections) > 3:
            kinds = [kind for kind in kinds if kind not in sections] + ["one of the sections below"]
        return " or ".join(kinds)
    if "then" in value:
        return f"list of {_type(value['items'])} or {_type(value['then'])}"
    if "const" in value or "enum" in value:
        return ", ".join(f"`{_yaml(each)}`" for each in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}" if value.get("items") else "list"
    if value.get("type") == "object":
        inner = value.get("additionalProperties")
        return f"mapping to {_type(inner)}" if isinstance(inner, dict) and inner else "mapping"
    words = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
    }
    return words.get(value.get("type", ""), "any") + _bounds(value)


def _bounds(value: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {value[key]:g}" for key, sign in signs.items() if key in value)


def _default(key: str, value: dict[str, Any], required: Any) -> str:
    if key in required:
        return "**needed**"
    default = value.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).replace("\n...", "").strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


# Commands

_KINDS = {int: "number", float: "number", str: "text", Path: "file or folder"}


def commands_page() -> str:
    """Every command with its arguments and options, from the program itself."""
    program: Any = typer.main.get_command(cli.app)
    parts = ["# Commands\n", "What `hf-evomerge COMMAND --help` prints.\n"]
    parts += [
        f"- [`{name}`](#{name}): {_cell(_summary(command))}"
        for name, command in program.commands.items()
    ]
    for name, command in program.commands.items():
        parts += [
            "",
            f"## {name}\n",
            inspect.cleandoc(command.help or "") + "\n",
            *_parameters(name, command),
        ]
    return "\n".join(parts) + "\n"


def _summary(command: Any) -> str:
    text = inspect.cleandoc(command.help or "").split("\n\n")[0]
    if not text:
        raise LookupError(f"{command.name}: has no description; add a docstring")
    return text


def _parameters(name: str, command: Any) -> Iterator[str]:
    kinds = get_type_hints(command.callback)
    yield "| argument or option | default | meaning |\n| --- | --- | --- |"
    for parameter in command.params:
        if not parameter.help:
            raise LookupError(f"hf-evomerge {name}: {parameter.name} has no help")
        is_option = parameter.param_type_name == "option"
        words = (
            ", ".join(f"`{word}`" for word in parameter.opts)
            if is_option
            else f"`{parameter.name.upper()}`"
        )
        takes = "" if not is_option or parameter.is_flag else f" {_kind(kinds[parameter.name])}"
        shown = parameter.default not in (None, False, ...) and not callable(parameter.default)
        default = f"`{parameter.default}`" if shown else "**needed**" if parameter.required else ""
        yield f"| {words}{takes} | {default} | {_cell(parameter.help)} |"


def _kind(hint: Any) -> str:
    if get_origin(hint) is list:
        return f"{_kind(get_args(hint)[0])}, more than once"
    if hint in _KINDS:
        return _KINDS[hint]
    return next(_kind(each) for each in get_args(hint) if each is not type(None))


# Python


def python_pages() -> dict[str, str]:
    """A page for each part of the package that has public names."""
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for name, home in hf_evomerge._HOME_OF.items():
        found[home.split(".")[0]].append(name)
    return {part.replace("_", "-"): _python_page(part, names) for part, names in found.items()}


def _python_page(part: str, names: list[str]) -> str:
    title, summary = PARTS[part]
    own = [name for name in MORE.get(part, ()) if name not in names]
    lines = [f"# {title}\n", f"{summary}\n"]
    options = dict.fromkeys(WHOLE, "    options: {inherited_members: true}\n")
    lines += [f"::: hf_evomerge.{name}\n{options.get(name, '')}" for name in sorted(names)]
    if own:
        lines.append(f"Of `hf_evomerge.{part}`:\n")
        lines += [f"::: hf_evomerge.{part}.{name}\n" for name in own]
    if part == "merging":
        lines += [_function(name) for name in sorted(merging.METHODS)]
    return "\n".join(lines)


def _function(name: str) -> str:
    """A merge method as a function: it is made from the registry, so that only the function itself
    knows its arguments."""
    function = getattr(import_module("hf_evomerge.merging"), name)
    text = re.sub(
        r"^(\w+):\n((?:    .*\n?|\n)+)",
        _listed,
        inspect.cleandoc(function.__doc__) + "\n",
        flags=re.MULTILINE,
    )
    return (
        f"## `merging.{name}` "
        f"{{#{name}}}\n\n```python\n{name}{inspect.signature(function)}\n```\n\n{text}\n"
    )


def _listed(found: re.Match[str]) -> str:
    """A section of a docstring as a list, or as code where it is an example."""
    body = inspect.cleandoc(found[2])
    if ">>>" in body:
        return f"\n**{found[1]}**\n\n```pycon\n{body}\n```\n"
    items = re.sub(r"^(\w+):", r"- `\1`:", body, flags=re.MULTILINE)
    return f"\n**{found[1]}**\n\n{items}\n"
