import re
from pathlib import Path

import pytest
import yaml

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import DataSpec, get_task, parse_task, task_names
from hf_evomerge.recipes.strict_yaml import validate

PAGE = (Path(__file__).parents[2] / "docs" / "fitness.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_are_valid(example):
    """Every YAML example of the page is read without complaint."""
    spec = parse_task(example["fitness"]) if "fitness" in example else None
    for section in [example] if spec is None else example.get("data", {}).values():
        validate(DataSpec, section if spec is None else spec.complete(section), FitnessError)


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("Data", DataSpec), *((name, get_task(name).spec_type) for name in task_names() if name not in ("gsm8k", "mgsm"))],
)
def test_tables_are_complete(heading, kind):
    """Every setting has a row in the table of its section, and every row is a setting."""
    section = re.split(r"^## ", PAGE.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]
    table = section.split("| field | default | meaning |")[1].split("\n\n")[0]
    rows = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert rows == set(kind.model_fields) - {"task", "function"}
