"""The JSON schemas for editors: they allow what the models allow, find mistakes, and are made with
little installed."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from schemas import SCHEMAS

from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.limited_yaml import LimitedLoader
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.strict_yaml import parse_yaml
from hf_evomerge.search.file.config import SearchConfig

ROOT = Path(__file__).parents[2]
# what the packages that a build names bring with them
BROUGHT = {
    "annotated_types",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
    "hf_evomerge",
}


def _complaints(name, data):
    """Where data does not follow a schema, and how."""
    return [
        (error.json_path, error.message)
        for error in Draft202012Validator(SCHEMAS[name]()).iter_errors(data)
    ]


def _yaml(text):
    return yaml.load(text, Loader=LimitedLoader)


def _blocks():
    """Every YAML file and block that is shown, with its page and its kind."""
    for file in sorted((ROOT / "examples").glob("*.yaml")):
        yield file.name, "search", file.read_text(encoding="utf-8")
    for kind, *pages in (
        ("search", "README.md", "docs/search.md"),
        ("recipe", "docs/recipes.md", "docs/adapters.md"),
    ):
        for page in pages:
            text = (ROOT / page).read_text(encoding="utf-8")
            for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
                yield page, kind, block


@pytest.mark.parametrize(("page", "kind", "text"), [*_blocks()])
def test_what_is_shown_follows_its_schema(page, kind, text):
    """Every YAML file in examples/ and every YAML block of the documentation follows its schema."""
    assert _complaints(kind, _yaml(text)) == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schemas_are_valid(name):
    """Each schema is one by the rules of JSON schemas, and an editor shows a sentence for every key
    of every section."""
    schema = SCHEMAS[name]()
    Draft202012Validator.check_schema(schema)
    for section, part in {"top": schema, **schema["$defs"]}.items():
        for key, value in part["properties"].items():
            assert value.get("description", "").endswith("."), f"{section}: {key}"


def test_the_schemas_are_made_with_what_a_build_installs(tmp_path):
    """Writing both files imports no package beside those that `build-system.requires` names."""
    code = (
        f"import sys, schemas; schemas.write_schemas(schemas.Path({str(tmp_path)!r})); "
        "print(*sys.modules)"
    )
    program = f"import sys; sys.path += {sys.path!r}; {code}"
    command = [sys.executable, "-S", "-c", program]  # -S: without what .pth files import
    done = subprocess.run(command, cwd=ROOT / "website", capture_output=True, text=True, check=True)
    known = packages_distributions()
    imported = {name for name in done.stdout.split() if name in known}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = {re.split("[<>=]", name)[0] for name in project["build-system"]["requires"]}
    assert {known[name][0].lower() for name in imported - BROUGHT} <= named
    written = {file.name for file in tmp_path.iterdir()}
    assert written == {"recipe.schema.json", "search.schema.json"}


def _numbers(part, place):
    """Every number of a schema, with its place."""
    if isinstance(part, dict):
        if part.get("type") in ("integer", "number"):
            yield place, part
        part = list(part.items())
    for inside in part if isinstance(part, list | tuple) else ():
        yield from _numbers(inside, f"{place}.{inside[0]}" if isinstance(inside, tuple) else place)


@pytest.mark.parametrize("name", [*SCHEMAS])
def test_every_number_has_bounds(name):
    """A number of a recipe or a search file says what is the least and what the most."""
    numbers = list(_numbers(SCHEMAS[name](), name))
    assert len(numbers) > 5
    for place, number in numbers:
        assert number.keys() & {"minimum", "exclusiveMinimum"}, place
        assert number.keys() & {"maximum", "exclusiveMaximum"}, place


SEARCH = "{space: ps, sources: [{model: a}, {model: b}], fitness: {task: likelihood}}"
RECIPE = "{sources: [{model: a}], flow: {path: '0:0-3, 0:2'}}"
# A kind of file with a change, the place, and what is said.
MISTAKES = {
    "unknown nested key": ("search: {merge: {mehtod: ties}}", "$.merge: 'mehtod' was unexpected"),
    "unknown space": ("search: {space: sp}", "$.space: 'sp' is not one of"),
    "unknown key of a task": (
        "search: {fitness: {task: likelihood, sep: 1}}",
        "$.fitness: is not valid under any",
    ),
    "no source": ("search: {sources: []}", "$.sources: [] should be non-empty"),
    "seed below 0": (
        "search: {compute: {seed: -1}}",
        "$.compute.seed: -1 is less than the minimum of 0",
    ),
    "a number as a model": (
        "recipe: {sources: [{model: 1}]}",
        "$.sources[0].model: 1 is not of type 'string'",
    ),
    "unknown key of a recipe": ("recipe: {fow: 1}", "$: 'fow' was unexpected"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake):
    """A mistake in a file that otherwise follows its schema is the one thing that is found, at its
    place."""
    text, message = MISTAKES[mistake]
    ((name, changes),) = _yaml(text).items()
    data = _yaml({"search": SEARCH, "recipe": RECIPE}[name])
    assert _complaints(name, data) == []
    ((where, said),) = _complaints(name, {**data, **changes})
    place, _, words = message.partition(": ")
    assert where == place
    assert words in said


def test_both_ways_to_write_a_path_and_a_task_of_ones_own_are_allowed():
    """The schemas allow what the models allow beyond their own types: a path as text, and a task
    registered elsewhere."""
    for text in (
        RECIPE,
        "{sources: [{model: a}], flow: {path: ['0:0-3']}}",
        "{sources: [{model: a}], merge: {method: mine}}",
    ):
        assert _complaints("recipe", _yaml(text)) == []
    assert Recipe.from_yaml(RECIPE).flow is not None
    assert parse_yaml(SearchConfig, SEARCH, SearchError).fitness.task == "likelihood"
    assert (
        _complaints("search", {**_yaml(SEARCH), "fitness": {"task": "my-own", "anything": 1}}) == []
    )
