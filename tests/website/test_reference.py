"""The pages that are made from the code: complete, and not made where something is not
described."""

import re

import pytest
import reference
import typer
from schemas import SCHEMAS

import hf_evomerge
from hf_evomerge import cli, merging


def test_every_key_has_a_row():
    """The pages of both files have a row for each key of each section, and every section that a row
    links to."""
    for name in ("search", "recipe"):
        page = reference.file_page(name)
        schema = SCHEMAS[name]()
        kinds = {kind.lower() for kind in (reference.WHOLE_FILES[name], *schema["$defs"])}
        assert set(re.findall(r"\{#(\w+)\}$", page, re.MULTILINE)) == kinds
        assert set(re.findall(r"\]\(#(\w+)\)", page)) <= {kind.lower() for kind in schema["$defs"]}
        sections = [schema, *schema["$defs"].values()]
        assert page.count("\n| `") == sum(len(section["properties"]) for section in sections)
        assert not re.search(r"\|\s*\|$", page, re.MULTILINE), "a key without its meaning"
    assert re.search(
        r"^\| `seed` \| whole number ≥ 0 < 9\.22337e\+18 \| `0` \| Seed of",
        reference.file_page("search"),
        re.MULTILINE,
    )
    assert re.search(
        (
            r"^\| `sources` \| list of \[section\]\(#sourceref\) or \[section\]\(#run\) \| "
            r"\*\*needed\*\* \| "
        ),
        reference.file_page("recipe"),
        re.MULTILINE,
    )


def test_a_key_without_a_description_is_an_error():
    """A key that nobody describes ends the build with the section and the key."""
    with pytest.raises(LookupError, match="`ps`: method: has no description"):
        reference._section(
            "`ps`", {"description": "PS.", "properties": {"method": {"type": "string"}}}, {}
        )


def test_every_command_and_option_is_described():
    """Every command has a section, a sentence, and a row with a meaning for each argument and
    option."""
    page = reference.commands_page()
    program = typer.main.get_command(cli.app)
    for name, command in program.commands.items():
        body = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            assert (
                f"`{parameter.opts[0] if parameter.param_type_name == 'option' else parameter.name.upper()}`"  # noqa: E501
                in body
            )
    assert not re.search(r"\|\s*\|$", page, re.MULTILINE)
    program.commands["merge"].params[1].help = ""
    with pytest.raises(LookupError, match="hf-evomerge merge: out has no help"):
        list(reference._parameters("merge", program.commands["merge"]))


def test_every_public_name_is_on_a_page():
    """Every name that the package offers is on one page, and every merge method with its own
    signature."""
    text = "\n".join(reference.python_pages().values())
    assert sorted(re.findall(r"^::: hf_evomerge\.(\w+)$", text, re.MULTILINE)) == sorted(
        hf_evomerge.__all__
    )
    for name in merging.METHODS:
        assert f"\n{name}(" in text


def test_tables_of_pages_have_every_setting():
    """The table that a task's page gets has each of its settings, and its links lead to sections of
    the reference."""
    from hf_evomerge.fitness import get_task, task_names

    sections = reference.sections()
    for name in task_names():
        table = reference.table(name)
        assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(
            get_task(name).spec_type.model_fields
        )
        for page, anchor in re.findall(r"\]\(\.\./([^)#]*)#(\w+)\)", table):
            assert sections[anchor] == page
        assert "](#" not in table
    assert all(f"**{name}**" in reference.table("methods") for name in merging.METHODS)
