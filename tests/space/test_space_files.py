"""The Space's own files: a complete header, requirements that agree with the package's, and imports
that are uploaded."""

import re
import sys
import tomllib
from inspect import signature
from itertools import accumulate
from pathlib import Path

import pytest
import yaml
from endpoints import endpoints
from imports import imports
from packaging.requirements import Requirement
from showcase import Showcase

from hf_evomerge.hub.commit import size_of
from hf_evomerge.hub.space import LEFT_OUT, space_files

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "space_app"
MODULES = sorted(SPACE.glob("*.py"))
THEIRS = set(
    """
    PIL diffusers filelock gradio huggingface_hub jinja2 numpy peft pyarrow pydantic safetensors spaces torch
    torchvision tqdm transformers yaml
    """.split()  # noqa: E501, SIM905
)


def _by_name(lines):
    """Requirements by the names of their packages."""
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {each.name.replace("_", "-"): each for each in found}


def _requirements():
    return _by_name((SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines())


def test_the_header_is_what_a_space_needs():
    """The README's header names SDK, a version that is required, file, hardware, license, a
    description of 60 characters."""
    header = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (header["sdk"], header["python_version"]) == ("gradio", "3.11")
    assert re.fullmatch(r"6\.\d+\.\d+", header["sdk_version"])
    assert _requirements()["gradio"].specifier.contains(header["sdk_version"])
    assert (SPACE / header["app_file"]).is_file()
    assert len(header["short_description"]) <= 60
    needed = {"title", "emoji", "license", "pinned", "suggested_hardware", "tags"}
    assert needed <= set(header)
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {header["colorFrom"], header["colorTo"]} <= colours


def test_the_extra_and_the_requirements_agree():
    """The extra `space` names the packages of requirements.txt, in the same ranges; those of
    pictures are in the extras `vision` and `diffusion`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pictures = [*extras["vision"], *extras["diffusion"]]
    kept = [line for line in pictures if line.startswith(("diffusers", "torchvision"))]
    extra, space = (
        {name: each.specifier for name, each in requirements.items()}
        for requirements in (_by_name([*extras["space"], *kept]), _requirements())
    )
    assert extra == space


@pytest.mark.parametrize(
    ("there", "packages"),
    [
        (["config.json", "tokenizer.json"], set()),
        (["config.json", "preprocessor_config.json"], {"torchvision"}),
        (["model_index.json", "unet/config.json"], {"diffusers"}),
        (["model_index.json", "feature/preprocessor_config.json"], {"diffusers", "torchvision"}),
    ],
    ids=["text", "sees", "draws", "draws and sees"],
)
def test_a_space_installs_what_its_model_needs(there, packages):
    """diffusers is for a model that draws, torchvision for one that sees; everything else is for
    all."""
    text = space_files("user/model", there=there)["requirements.txt"].decode()
    named = _by_name(text.splitlines()).keys()
    assert named == _requirements().keys() - {"diffusers", "torchvision"} | packages


def _package(folder):
    """The modules of the package in a folder, by dotted name."""
    files = (file.relative_to(folder) for file in (folder / "hf_evomerge").rglob("*.py"))
    return {
        ".".join(file.with_suffix("").parts).removesuffix(".__init__"): folder / file
        for file in files
    }


def test_what_the_modules_import_is_uploaded():
    """Every module of the package that the Space imports, and those that these import, is in its
    repository.

    The app's own modules count with what their functions import, the package's with what they
    import at once. Everything else is the standard library's or named in the requirements.
    """
    uploaded = {name for name in space_files("user/model") if name.endswith(".py")}
    own = {file.stem: file for file in MODULES}
    known = {**_package(ROOT), **own}
    waiting = list(own)
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        file = known[name]
        mine = name in own
        assert str(file.relative_to(SPACE if mine else ROOT)) in uploaded, name
        for imported, _ in imports(file, SPACE if mine else ROOT / "hf_evomerge", at_once=not mine):
            parts = imported.split(".")
            inside = known.keys() & set(accumulate(parts, "{}.{}".format))
            waiting += inside
            others = sys.stdlib_module_names | THEIRS
            assert inside or parts[0] in others, f"{name} imports {imported}"
    assert "hf_evomerge.fitness.tasks.generation" in seen


def test_nothing_is_uploaded_that_the_space_does_without():
    """No demo, no weights, no Hub on loopback, no build, no search, no command line: fewer than 160
    files, less than 1.2 MB."""
    files = space_files("user/model")
    rooms = {name.split("/")[1] for name in files if name.startswith("hf_evomerge/")}
    assert not rooms & LEFT_OUT
    there = {file.name for file in (ROOT / "hf_evomerge").iterdir()}
    assert LEFT_OUT - {"_bundled"} <= there, "a room that is gone"
    assert len(files) < 160
    assert sum(map(size_of, files.values())) < 1.2e6


def test_no_module_hides_one_of_the_standard_library():
    """No file of the Space has the name of a module of Python's own."""
    assert not {file.stem for file in MODULES} & sys.stdlib_module_names


def test_the_documentation_lists_the_endpoints():
    """The table in docs/space.md has the endpoints of the API with their arguments, in order."""
    page = (ROOT / "docs" / "space.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `/(\w+)` \|([^|]*)\|", page, re.M)
    listed = {name: re.findall(r"`(\w+)`", arguments) for name, arguments in rows}
    functions = [function for function, _ in endpoints(Showcase(""))]
    assert listed == {each.__name__: list(signature(each).parameters) for each in functions}
