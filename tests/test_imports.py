"""Import directions: the parts of the package know only the parts below them, and light modules
stay light."""

import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import yaml
from imports import imports

PACKAGE = Path(__file__).parents[1] / "hf_evomerge"

# What each part may import, besides itself. A part is a module or a folder directly inside the
# package.
ALLOWED = yaml.safe_load("""
errors: []
lines: []
machine: []
modeling: []
registration: [modeling]
recipes: [errors]
checkpoints: [recipes, errors]
merging: [checkpoints, recipes, errors]
routing: [modeling, checkpoints, recipes, errors]
building: [modeling, merging, routing, checkpoints, recipes, errors]
mergekit: [merging, recipes, errors]
fitness: [checkpoints, recipes, errors]
pictures: [recipes, errors]
record: [pictures, fitness, recipes, errors]
""")
UPPER = ["search", "hub", "cli", "demo"]  # each is kept out of everything in ALLOWED
FORBIDDEN = {"search": {"hub", "cli", "demo"}, "hub": {"cli", "demo"}}
# The rooms of search/, from the lowest; a file beside the rooms drives them and may import all.
ROOMS = yaml.safe_load("""
optimizers: []
file: [optimizers]
study: [file]
evaluation: [study, file, optimizers]
spaces: [evaluation, file, optimizers]
runners: [evaluation, study, file]
results: [spaces, evaluation, study, file, optimizers]
phases: [results, runners, spaces, evaluation, study, file, optimizers, folder, callbacks]
reports: [phases, results, study, file, callbacks]
""")
# Folders of features that could be deleted. Each file stands in the room that it is called after.
ANNEXES = ["front"]
LIGHT = [
    "hf_evomerge",
    "hf_evomerge.recipes.recipe",
    "hf_evomerge.recipes.layer_path",
    "hf_evomerge.merging.registry",
    "hf_evomerge.merging",
    "hf_evomerge.fitness",
    "hf_evomerge.routing.layout",
    "hf_evomerge.search.file.config",
    "hf_evomerge.search.spaces.space",
    "hf_evomerge.search.study.study",
    "hf_evomerge.search.results.result",
    "hf_evomerge.pictures",
]


def _modules():
    return sorted(PACKAGE.rglob("*.py"))


@cache
def _part(name):
    """The part of the package that a dotted name is in; None outside of it, and for the package
    itself."""
    pieces = name.split(".")
    if pieces[0] != PACKAGE.name or len(pieces) < 2:
        return None
    known = (PACKAGE / pieces[1]).is_dir() or (PACKAGE / f"{pieces[1]}.py").is_file()
    return pieces[1] if known else None


def _own_part(file):
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def test_imports_point_one_way():
    """A module imports its own part of the package and the parts below it, and nothing above."""
    for file in _modules():
        own = _own_part(file)
        for name, line in imports(file, PACKAGE):
            part = _part(name)
            if part in (None, own):
                continue
            where = f"{file.relative_to(PACKAGE)}:{line} imports {name}"
            assert own not in ALLOWED or part in ALLOWED[own], where
            assert part not in FORBIDDEN.get(own, ()), where


def test_no_circle_of_imports():
    """No file of the package imports, by way of others, lazily or for types alone, a file that
    imports it."""
    files = {_dotted(file): file for file in _modules()}
    edges = {}
    for name, file in files.items():
        targets = files.keys() & {target for target, _ in imports(file, PACKAGE)}
        # "from . import x" means x, not the folder
        edges[name] = {each for each in targets if not f"{name}.".startswith(f"{each}.")}
    TopologicalSorter(edges).prepare()  # raises CycleError
    merging = "hf_evomerge.merging"
    assert {f"{merging}.registry", f"{merging}.arithmetic"} <= edges[f"{merging}.methods.ties"]


def test_rooms_of_search_import_downwards():
    """A room of ``search/`` imports the rooms below it, and none of the files that drive the
    search."""
    for file in sorted((PACKAGE / "search").glob("*/*.py")):
        room = _room(_dotted(file))
        for name, line in imports(file, PACKAGE):
            if room in ROOMS and name.startswith("hf_evomerge.search."):
                where = f"{file.relative_to(PACKAGE)}:{line} imports {name}"
                assert _room(name) in {room, *ROOMS[room]}, where


def _room(name):
    """The room of ``search/`` that a module stands in; of an annex the one that it is called
    after."""
    first, *rest = name.split(".")[2:]
    return rest[0] if first in ANNEXES and rest else first


def _dotted(file):
    return ".".join([PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(
        ".__init__"
    )


def test_the_modelling_files_travel_alone():
    """The files that are pushed with the weights import each other and otherwise nothing of the
    package, by any spelling."""
    files = sorted((PACKAGE / "modeling").glob("*_evo_merged.py"))
    assert len(files) == 5
    own = f"{PACKAGE.name}.modeling"
    for file in files:
        for name, line in imports(file, PACKAGE):
            travels = name.split(".")[0] != PACKAGE.name or name.startswith(own)
            assert travels, f"{file.name}:{line} imports {name}"


def test_every_lower_part_is_under_the_rule():
    """No part of the package is left out of the table of directions."""
    parts = {_own_part(file) for file in _modules()} - {"__init__", "__main__"}
    assert parts <= {*ALLOWED, *UPPER}, "say in ALLOWED or UPPER where the new part stands"
    rooms = {_room(_dotted(file)) for file in (PACKAGE / "search").glob("*/*.py")}
    assert rooms == {*ROOMS, *ANNEXES}, "files of an annex are called after rooms"


def test_the_reader_sees_relative_nested_and_deferred_imports(tmp_path):
    """The test's own reader resolves relative imports at every level, also inside functions."""
    file = tmp_path / "hf_evomerge" / "merging" / "ties.py"
    file.parent.mkdir(parents=True)
    file.write_text("from ..errors import E\nimport torch\ndef f():\n    from . import common\n")
    assert {name for name, _ in imports(file, tmp_path / "hf_evomerge")} == {
        "hf_evomerge.errors",
        "hf_evomerge.errors.E",
        "torch",
        "hf_evomerge.merging",
        "hf_evomerge.merging.common",
    }


def test_light_modules_do_not_import_heavy_packages():
    """Importing these modules, one after the other, loads none of the packages that take
    seconds."""
    program = """if True:
        import sys, importlib
        for name in sys.argv[1:]:
            importlib.import_module(name)
            light = {'numpy', 'rich'} if name == 'hf_evomerge' else set()  # which its parts need
            if heavy := (light | {'torch', 'transformers', 'gradio', 'ray', 'lm_eval', 'datasets'}) & set(sys.modules):
                sys.exit(f"{name} imports {heavy}")
    """  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", program, *LIGHT], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert (done.returncode, done.stderr) == (0, "")
