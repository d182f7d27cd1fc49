"""What the documentation shows is valid: search files, recipes, tables and links. What it runs:
test_examples.py."""

import re
from pathlib import Path

import pytest
import yaml

from hf_evomerge.errors import SearchError
from hf_evomerge.merging.registry import all_methods
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.strict_yaml import parse_yaml
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.spaces.flow import FlowSpace
from hf_evomerge.search.spaces.parameter import ParameterSpace

ROOT = Path(__file__).parents[1]
SKILL = "skills/hf-evomerge/SKILL.md"
FILES = [
    *(
        ROOT / name
        for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", SKILL)
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks" / "pages").glob("*.md")),
]
PAGES = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in FILES}
TENSORS = {"model.embed_tokens.weight": 640, "model.norm.weight": 1}  # rows
SOURCES = "sources: [{model: your-name/japanese-7b}, {model: your-name/maths-7b}]\n"


def _blocks(language, *pages):
    """The fenced blocks of a language, with the page that each is on."""
    return [
        (page, text)
        for page in pages
        for text in re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)
    ]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.stem
)
def test_examples_are_valid_searches(file):
    """Every file in examples/ is a search file whose spaces have coordinates and decode their own
    start."""
    config = SearchConfig.load(file)
    layers = [32] * len(config.sources)
    merge = None
    if "ps" in config.spaces:
        space = ParameterSpace(config, 32, TENSORS if config.merge.groups == "rows" else {})
        merge = space.decode(space.start().mean).merge
        assert merge is not None
        layers.append(32)
    if "dfs" in config.spaces:
        flow = FlowSpace(config, layers, merge)
        assert flow.decode(flow.start().mean).flow is not None


def test_the_papers_numbers():
    """The examples have the sizes that the paper states: six numbers for PS, 4,288 for DFS, and
    what is spent on them."""
    ps, hybrid = (
        SearchConfig.load(ROOT / "examples" / f"evollm-jp-{name}.yaml") for name in ("ps", "hybrid")
    )
    assert len(ParameterSpace(ps, 32).coordinates) == 6
    assert ps.stages[0].evaluations == 1000
    space = ParameterSpace(hybrid, 32)
    flow = FlowSpace(hybrid, [32] * 4, space.decode(space.start().mean).merge)
    assert flow.genome.dimension == 192 + 64 * 64
    assert hybrid.stages[1].evaluations == 128 * 100


@pytest.mark.parametrize(
    ("page", "text"), _blocks("yaml", "README.md", "docs/search.md", "docs/how-to.md", SKILL)
)
def test_search_blocks(page, text):
    """Every YAML block of these pages is a whole search file."""
    config = parse_yaml(SearchConfig, text, SearchError)
    if "ps" in config.spaces:
        assert ParameterSpace(config, 32, TENSORS).coordinates


def test_ways_to_write_a_path():
    """Every way to write hops that the page explains in its text is read."""
    before = PAGES["docs/recipes.md"].partition("one hop that runs two layers")[0]
    pieces = re.findall(r"`(\d[^`]*)`", before.rpartition("\n\n")[2])
    assert len(pieces) == 5
    for piece in pieces:
        recipe = Recipe.from_yaml(f"{SOURCES}flow: {{path: ['{piece}']}}")
        assert len(recipe.flow.to_path()) >= 1


def test_the_table_of_methods():
    """The page's table has every merge method once, and the place of the table of all
    parameters; the page that compares tools counts them."""
    page = PAGES["docs/methods.md"]
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(all_methods())
    assert "\n<!-- generated: methods -->\n" in page
    count = re.search(r"^\| merge methods \|.*\| (\d+) \|$", PAGES["docs/comparison.md"], re.M)[1]
    assert int(count) == len(all_methods())


def test_the_skill_is_one():
    """The page for coding agents begins as their programs read it: a name that is its folder's, and
    when to use it."""
    front = yaml.safe_load(PAGES[SKILL].split("---\n")[1])
    assert front["name"] == Path(SKILL).parent.name
    assert 100 < len(front["description"]) <= 1024
    named = set(re.findall(r"`(docs/[\w-]+\.md)`", PAGES[SKILL]))
    assert len(named) > 3
    assert named <= PAGES.keys()


def test_links_lead_somewhere():
    """Every relative link leads to a file of the repository, with an anchor to a heading or to a
    class there."""
    for page, text in PAGES.items():
        for target, anchor in re.findall(r"\[[^]]*\]\((?!http|#)([^)#]+)(?:#([^)]+))?\)", text):
            file = (ROOT / page).parent / target
            assert file.exists(), f"{page}: {target}"
            if anchor and file.suffix in (".py", ".md"):
                names = re.findall(
                    r"^class (\w+)|^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE
                )
                anchors = {
                    cls.lower() or re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
                    for cls, heading in names
                }
                assert anchor in anchors, f"{page}: {target}#{anchor}"
