"""The JSON schemas for editors. `python tests/test_schemas.py` writes them anew from the models that they describe."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from hf_evomerge.errors import SearchError
from hf_evomerge.fitness import get_task, task_names
from hf_evomerge.merging.registry import all_methods
from hf_evomerge.recipes.limited_yaml import LimitedLoader
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.strict_yaml import StrictModel, parse_yaml
from hf_evomerge.search.file.config import SearchConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "hf_evomerge" / "schemas"
BUILT_IN = [name for name in task_names() if get_task(name).__module__.startswith("hf_evomerge.")]  # tests register others
REFERENCE = "#/$defs/{model}"


class _Generator(GenerateJsonSchema):
    """Leaves out what only Python can say."""

    def callable_schema(self, schema: Any) -> JsonSchemaValue:
        return {"not": {}}


def _schema(kind: type[StrictModel]) -> dict[str, Any]:
    """A model's schema, with the text of its docstring's attributes at the keys, and without titles."""
    schema = kind.model_json_schema(schema_generator=_Generator, ref_template=REFERENCE)
    kinds = {each.__name__: each for each in [kind, *_below(StrictModel)]}
    for name, part in [(kind.__name__, schema), *schema.get("$defs", {}).items()]:
        summary = part.pop("description", "").partition("\n\nAttributes:\n")[0]
        part["description"] = " ".join(summary.split()).replace("``", "`")
        texts: dict[str, str] = {}  # of the classes that it extends too
        for each in reversed(kinds[name].__mro__):
            texts |= _attributes(inspect.cleandoc(each.__doc__ or "").partition("\n\nAttributes:\n")[2])
        for name, value in list(part.get("properties", {}).items()):
            value.pop("title", None)
            if {"not": {}} in value.get("anyOf", [value]):
                del part["properties"][name]
            elif name in texts:
                part["properties"][name] = {"description": texts[name], **value}
    return schema


def _below(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield from [each, *_below(each)]


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    for match in re.finditer(r"^ {4}(\w[\w, ]*):((?:(?!^ {4}\w).*\n?)+)", text, re.MULTILINE):
        for name in match[1].split(", "):
            yield name, " ".join(match[2].split()).replace("``", "`")


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe."""
    schema = _schema(Recipe)
    path = schema["$defs"]["FlowPart"]["properties"]["path"]
    path["anyOf"] = [{"type": "string"}, {"type": "array", "items": path.pop("items")}]
    del path["type"]
    _suggest_methods(schema["$defs"]["MergePart"])
    schema["anyOf"] = [{"required": ["merge"]}, {"required": ["flow"]}]
    return _titled(schema, "Recipe of hf_evomerge")


def search_schema() -> dict[str, Any]:
    """The schema of a search file; `fitness` is a built-in task's section, or that of a task with another name."""
    schema = _schema(SearchConfig)
    choices = []
    for name in BUILT_IN:
        part = _schema(get_task(name).spec_type)
        schema["$defs"].update(part.pop("$defs", {}))
        part["properties"]["task"] = {"description": part["properties"]["task"]["description"], "const": name}
        part["required"] = sorted({*part.get("required", []), "task"})
        schema["$defs"][part["title"]] = part
        choices.append({"$ref": REFERENCE.format(model=part["title"])})
    other = {"type": "string", "not": {"enum": BUILT_IN}}
    choices.append({"type": "object", "properties": {"task": other}, "required": ["task"], "description": "Your own task."})
    schema["$defs"].pop("TaskSpec", None)
    schema["properties"]["fitness"] = {"description": schema["properties"]["fitness"]["description"], "anyOf": choices}
    for name in ("FirstConfig", "TaskObjective"):
        schema["$defs"][name]["properties"]["fitness"]["anyOf"] = [*choices, {"type": "null"}]
    objective = schema["properties"]["objectives"]["items"]
    objective["anyOf"] = objective.pop("oneOf")
    _suggest_methods(schema["$defs"]["ParameterSpaceConfig"])
    return _titled(schema, "Search file of hf_evomerge")


def _suggest_methods(part: dict[str, Any]) -> None:
    functions = {name: method.function for name, method in all_methods().items()}
    shipped = sorted(name for name, function in functions.items() if function.__module__.startswith("hf_evomerge."))
    part["properties"]["method"]["anyOf"] = [{"enum": shipped}, {"type": "string"}]
    del part["properties"]["method"]["type"]


def _titled(schema: dict[str, Any], title: str) -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


SCHEMAS = {"recipe": recipe_schema, "search": search_schema}


def _text(name: str) -> str:
    return json.dumps(SCHEMAS[name](), indent=2, ensure_ascii=False) + "\n"


def complaints(data: Any, schema: Any, root: dict[str, Any], where: str = "") -> Iterator[str]:
    """Every way in which data does not follow a schema, for the keywords that the schemas here use."""
    unknown = schema.keys() - KEYWORDS
    assert not unknown, f"the test's validator does not know {unknown}"
    if "$ref" in schema:
        yield from complaints(data, root["$defs"][schema["$ref"].rpartition("/")[2]], root, where)
    if "anyOf" in schema and all(any(complaints(data, choice, root, where)) for choice in schema["anyOf"]):
        yield f"{where}: {data!r:.60} is none of the choices"
    if "not" in schema and not any(complaints(data, schema["not"], root, where)):
        yield f"{where}: {data!r:.60} is not allowed"
    if data not in schema.get("enum", [data]) or data != schema.get("const", data):
        yield f"{where}: {data!r:.60} is none of the values"
    if "type" in schema and not TYPES[schema["type"]](data):
        yield f"{where}: {data!r:.60} is no {schema['type']}"
    if isinstance(data, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield from (f"{where}.{key}: missing" for key in schema.get("required", ()) if key not in data)
        for key, value in data.items():
            rule = properties.get(key, more)
            if rule is False or any(complaints(key, schema.get("propertyNames", {}), root, where)):
                yield f"{where}.{key}: unknown key"
            elif rule is not True:
                yield from complaints(value, rule, root, f"{where}.{key}")
    if isinstance(data, list):
        if not schema.get("minItems", 0) <= len(data) <= schema.get("maxItems", len(data)):
            yield f"{where}: {len(data)} items"
        first = schema.get("prefixItems", [])
        for position, value in enumerate(data):
            rule = first[position] if position < len(first) else schema.get("items", {})
            yield from complaints(value, rule, root, f"{where}[{position}]")
    if isinstance(data, str) and (len(data) < schema.get("minLength", 0) or not re.search(schema.get("pattern", ""), data)):
        yield f"{where}: {data!r:.60} is too short or written in another way"
    if TYPES["number"](data):
        inside = schema.get("minimum", data) <= data <= schema.get("maximum", data)
        if not inside or not schema.get("exclusiveMinimum", data - 1) < data < schema.get("exclusiveMaximum", data + 1):
            yield f"{where}: {data} is out of range"


TYPES: dict[str, Any] = {
    "object": lambda data: isinstance(data, dict),
    "array": lambda data: isinstance(data, list),
    "string": lambda data: isinstance(data, str),
    "boolean": lambda data: isinstance(data, bool),
    "integer": lambda data: isinstance(data, int) and not isinstance(data, bool),
    "number": lambda data: isinstance(data, (int, float)) and not isinstance(data, bool),
    "null": lambda data: data is None,
}
KEYWORDS = {"$schema", "$defs", "$ref", "title", "description", "default", "anyOf", "not", "enum", "const", "type", "required"}
KEYWORDS |= {"properties", "additionalProperties", "propertyNames", "items", "prefixItems", "minItems", "maxItems", "minLength"}
KEYWORDS |= {"pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}


def _load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))


def _blocks() -> list[tuple[str, str, str]]:
    """Every YAML file and block that is shown, with its page and its kind."""
    shown = [(file.name, "search", file.read_text(encoding="utf-8")) for file in sorted((ROOT / "examples").glob("*.yaml"))]
    for page, kind in (("README.md", "search"), ("docs/search.md", "search"), ("docs/recipes.md", "recipe")):
        text = (ROOT / page).read_text(encoding="utf-8")
        shown += [(page, kind, block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    return shown


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_shipped_schemas_are_up_to_date(name: str) -> None:
    """Each schema in the package is what its model gives; `python tests/test_schemas.py` writes it anew."""
    shipped = resources.files("hf_evomerge").joinpath("schemas", f"{name}.schema.json").read_text(encoding="utf-8")
    assert shipped == _text(name)


@pytest.mark.parametrize(("page", "kind", "text"), _blocks())
def test_what_is_shown_follows_its_schema(page: str, kind: str, text: str) -> None:
    """Every YAML file in examples/ and every YAML block of the documentation follows its schema."""
    schema = _load(kind)
    data = yaml.load(text, Loader=LimitedLoader)
    assert list(complaints(data, schema, schema)) == []


@pytest.mark.parametrize(("page", "kind", "text"), _blocks())
def test_an_independent_validator_agrees(page: str, kind: str, text: str) -> None:
    """Where jsonschema is installed, it finds the schemas valid and what is shown to follow them."""
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    validator.check_schema(_load(kind))
    assert [error.message for error in validator(_load(kind)).iter_errors(yaml.load(text, Loader=LimitedLoader))] == []


def test_every_key_of_the_files_is_described() -> None:
    """An editor shows a sentence for every key of every section of both files, and the reference has it too."""
    for name in SCHEMAS:
        for section, part in {"top": _load(name), **_load(name)["$defs"]}.items():
            for key, value in part["properties"].items():
                assert value.get("description", "").endswith("."), f"{name}: {section}: {key}"


SEARCH = "{space: ps, sources: [{model: a}, {model: b}], fitness: {task: likelihood}}"
RECIPE = "{sources: [{model: a}], flow: {path: '0:0-3, 0:2'}}"
MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown key": ("search", {"spaec": "ps"}, ".spaec: unknown key"),
    "unknown nested key": ("search", {"ps": {"mehtod": "ties"}}, ".ps.mehtod: unknown key"),
    "unknown space": ("search", {"space": "sp"}, ".space: 'sp' is none of the values"),
    "unknown key of a task": ("search", {"fitness": {"task": "likelihood", "sep": 1}}, ".fitness: {'task'"),
    "no task": ("search", {"fitness": {}}, ".fitness: {} is none of the choices"),
    "no source": ("search", {"sources": []}, ".sources: 0 items"),
    "seed below 0": ("search", {"seed": -1}, ".seed: -1 is out of range"),
    "unknown dtype": ("recipe", {"dtype": "int8"}, ".dtype: 'int8' is none of the choices"),
    "a number as a model": ("recipe", {"sources": [{"model": 1}]}, ".sources[0].model: 1 is no string"),
    "unknown key of a recipe": ("recipe", {"fow": 1}, ".fow: unknown key"),
    "no sources": ("recipe", {"sources": []}, ".sources: 0 items"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake: str) -> None:
    """A mistake in a file that otherwise follows its schema is the one thing that is found, at its place."""
    name, changes, message = MISTAKES[mistake]
    schema, data = _load(name), yaml.load({"search": SEARCH, "recipe": RECIPE}[name], Loader=LimitedLoader)
    assert list(complaints(copy.deepcopy(data), schema, schema)) == []
    found = list(complaints({**data, **changes}, schema, schema))
    assert len(found) == 1
    assert found[0].startswith(message)


def test_both_ways_to_write_a_path_and_a_task_of_ones_own_are_allowed() -> None:
    """The schemas allow what the models allow beyond their own types: a path as text, and a task registered elsewhere."""
    recipe, search = _load("recipe"), _load("search")
    for text in (RECIPE, "{sources: [{model: a}], flow: {path: ['0:0-3']}}", "{sources: [{model: a}], merge: {method: mine}}"):
        assert list(complaints(yaml.load(text, Loader=LimitedLoader), recipe, recipe)) == []
    assert Recipe.from_yaml(RECIPE).flow is not None
    assert parse_yaml(SearchConfig, SEARCH, SearchError).fitness.task == "likelihood"
    own = {**yaml.load(SEARCH, Loader=LimitedLoader), "fitness": {"task": "my-own", "anything": 1}}
    assert list(complaints(own, search, search)) == []


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for schema_name in SCHEMAS:
        (FOLDER / f"{schema_name}.schema.json").write_text(_text(schema_name), encoding="utf-8")
