"""The Space's own files: a complete header, requirements that agree with the package's, and modules that need no package."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "space_app"
MODULES = sorted(SPACE.glob("*.py"))
TRAVELS = {"chat_process", "limited_yaml"}  # put beside them when they are uploaded
THEIRS = {"PIL", "diffusers", "gradio", "huggingface_hub", "numpy", "pyarrow", "spaces", "torch", "transformers", "yaml"}


def _requirements() -> list[str]:
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_the_header_is_what_a_space_needs() -> None:
    """The README's header names SDK, version, file, hardware, license, and a description of at most 60 characters."""
    header = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert header["sdk"] == "gradio"
    assert re.fullmatch(r"6\.\d+\.\d+", header["sdk_version"])
    assert header["python_version"] == "3.11"
    assert (SPACE / header["app_file"]).is_file()
    assert len(header["short_description"]) <= 60
    assert {"title", "emoji", "colorFrom", "colorTo", "license", "pinned", "suggested_hardware", "tags"} <= set(header)
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {header["colorFrom"], header["colorTo"]} <= colours


def test_the_version_of_gradio_is_one_that_is_required() -> None:
    """The SDK's version satisfies the range in requirements.txt."""
    from packaging.requirements import Requirement

    header = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    gradio = next(found for line in _requirements() if (found := Requirement(line)).name == "gradio")
    assert gradio.specifier.contains(header["sdk_version"])


def test_the_extra_and_the_requirements_agree() -> None:
    """The extra `space` names the packages of requirements.txt, in the same ranges."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = {found.name.replace("_", "-"): found for found in map(Requirement, project["optional-dependencies"]["space"])}
    space = {found.name.replace("_", "-"): found for found in map(Requirement, _requirements())}
    assert {name: str(found.specifier) for name, found in extra.items()} == {
        name: str(f.specifier) for name, f in space.items()
    }


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.name)
def test_the_modules_need_only_the_requirements(file: Path) -> None:
    """A module imports the standard library, the required packages and its neighbours; the package itself is optional."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    tried = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in {name.split(".")[0] for name in names}:
            known = name in sys.stdlib_module_names or name in THEIRS | TRAVELS or (SPACE / f"{name}.py").is_file()
            assert known or (name == "hf_evomerge" and id(node) in tried), f"{file.name}:{node.lineno} imports {name}"


def test_no_module_hides_one_of_the_standard_library() -> None:
    """No file of the Space has the name of a module of Python's own."""
    assert not {file.stem for file in MODULES} & sys.stdlib_module_names


def test_the_documentation_lists_the_endpoints() -> None:
    """The table in docs/space.md has the endpoints of the API with their arguments, in order."""
    from inspect import signature

    from endpoints import endpoints
    from showcase import Showcase

    page = (ROOT / "docs" / "space.md").read_text(encoding="utf-8")
    listed = {
        name: re.findall(r"`(\w+)`", arguments) for name, arguments in re.findall(r"^\| `/(\w+)` \|([^|]*)\|", page, re.M)
    }
    assert listed == {function.__name__: list(signature(function).parameters) for function, _ in endpoints(Showcase(""))}
