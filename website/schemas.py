"""The JSON schemas of recipes and search files, written from the models that read them, for editors
and for the reference.

`hatch_build.py` puts them into the package where it is built or installed, with what
`build-system.requires` names and no more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from hf_evomerge.fitness import get_task, task_names
from hf_evomerge.merging.registry import all_methods
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.strict_yaml import StrictModel
from hf_evomerge.search.file.config import SearchConfig

REFERENCE = "#/$defs/{model}"
FOLDER = Path(__file__).parents[1] / "hf_evomerge" / "schemas"


class _Generator(GenerateJsonSchema):
    """Leaves out what only Python can say."""

    def callable_schema(self, schema: Any) -> JsonSchemaValue:
        return {"not": {}}


def _schema(kind: type[StrictModel]) -> dict[str, Any]:
    """A model's schema, in which every key has a description, and without titles."""
    schema = kind.model_json_schema(schema_generator=_Generator, ref_template=REFERENCE)
    kinds = {each.__name__: each for each in [kind, *_below(StrictModel)]}
    for name, part in [(kind.__name__, schema), *schema.get("$defs", {}).items()]:
        part["description"] = _plain(part.get("description", ""))
        for key, value in list(part.get("properties", {}).items()):
            value.pop("title", None)
            if {"not": {}} in value.get("anyOf", [value]):
                del part["properties"][key]
            elif text := value.pop("description", None) or _inherited(kinds[name], key):
                part["properties"][key] = {"description": _plain(text), **value}
    return schema


def _below(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield from [each, *_below(each)]


def _inherited(kind: type, key: str) -> str | None:
    """The description of a key that a class narrows, from the class that it extends."""
    fields = (each.model_fields.get(key) for each in kind.__mro__ if issubclass(each, StrictModel))
    return next(
        (field.description for field in fields if field is not None and field.description), None
    )


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe."""
    schema = _schema(Recipe)
    _suggest_methods(schema["$defs"]["MergePart"])
    schema["anyOf"] = [{"required": ["merge"]}, {"required": ["flow"]}]
    return _titled(schema, "Recipe of hf_evomerge")


def search_schema() -> dict[str, Any]:
    """The schema of a search file; `fitness` is a built-in task's section, or that of a task with
    another name."""
    schema = _schema(SearchConfig)
    choices = []
    built_in = [
        name for name in task_names() if get_task(name).__module__.startswith("hf_evomerge.")
    ]
    for name in built_in:
        part = _schema(get_task(name).spec_type)
        schema["$defs"].update(part.pop("$defs", {}))
        part["properties"]["task"] = {
            "description": part["properties"]["task"]["description"],
            "const": name,
        }
        part["required"] = sorted({*part.get("required", []), "task"})
        schema["$defs"][part["title"]] = part
        choices.append({"$ref": REFERENCE.format(model=part["title"])})
    other = {"type": "string", "not": {"enum": built_in}}
    choices.append(
        {
            "type": "object",
            "properties": {"task": other},
            "required": ["task"],
            "description": "Your own task.",
        }
    )
    schema["$defs"].pop("TaskSpec", None)
    schema["properties"]["fitness"] = {
        "description": schema["properties"]["fitness"]["description"],
        "anyOf": choices,
    }
    for name in ("Step", "TaskObjective"):
        schema["$defs"][name]["properties"]["fitness"]["anyOf"] = [*choices, {"type": "null"}]
    objective = schema["properties"]["objectives"]["items"]
    objective["anyOf"] = objective.pop("oneOf")
    _suggest_methods(schema["$defs"]["MergeConfig"])
    return _titled(schema, "Search file of hf_evomerge")


def _suggest_methods(part: dict[str, Any]) -> None:
    functions = {name: method.function for name, method in all_methods().items()}
    shipped = sorted(
        name
        for name, function in functions.items()
        if function.__module__.startswith("hf_evomerge.")
    )
    part["properties"]["method"]["anyOf"] = [{"enum": shipped}, {"type": "string"}]
    del part["properties"]["method"]["type"]


def _titled(schema: dict[str, Any], title: str) -> dict[str, Any]:
    sources = schema["properties"]["sources"]
    several, run = sources.pop(
        "anyOf"
    )  # said in this way, a mistake in the list is found at its place
    sources |= {**several, "type": ["array", "object"], "if": {"type": "object"}, "then": run}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


SCHEMAS = {"recipe": recipe_schema, "search": search_schema}


def write_schemas(folder: Path = FOLDER) -> None:
    """Write ``recipe.schema.json`` and ``search.schema.json`` into a folder, which is made where it
    is not there."""
    folder.mkdir(exist_ok=True)
    for name, make in SCHEMAS.items():
        text = json.dumps(make(), indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.schema.json").write_text(text, encoding="utf-8")
