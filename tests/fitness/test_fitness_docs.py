import re
from pathlib import Path

import pytest
import yaml

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import DataSpec, get_task, parse_task, task_names
from hf_evomerge.recipes.strict_yaml import validate

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    page.stem: page.read_text(encoding="utf-8")
    for page in (DOCS / "fitness.md", *sorted(DOCS.glob("tasks/*.md")))
}
EXAMPLES = [
    yaml.safe_load(text)
    for page in PAGES.values()
    for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
]


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_are_valid(example):
    """Every YAML example of the pages is read without complaint."""
    spec = parse_task(example["fitness"]) if "fitness" in example else None
    for section in [example] if spec is None else example.get("data", {}).values():
        validate(DataSpec, section if spec is None else spec.complete(section), FitnessError)


def test_every_task_has_a_page():
    """Every task has a page that the table of tasks links to, with the place of the table of its
    settings."""
    names = [name for name in task_names() if name != "gsm8k"]  # which shares mgsm's page
    assert set(PAGES) == {"fitness", *names}
    for name in names:
        assert f"](tasks/{name}.md) | " in PAGES["fitness"]
        assert f"\n<!-- generated: {name} -->\n" in PAGES[name]
        assert f"#{get_task(name).spec_type.__name__.lower()})" in PAGES[name]
