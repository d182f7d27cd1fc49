"""Writes the figures that pages quote, from files of results.

    python website/figures.py    # the tables of the demo's models in README and gallery

The demo's are in the records beside its cards (`website/cards.py`), the others in
`benchmarks/results`. `tests/test_figures.py` compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_evomerge.fitness.scores import plus_minus
from hf_evomerge.recipes.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "model_cards" / "demo"
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
GALLERY = ROOT / "benchmarks" / "pages" / "gallery.md"
README_TABLE = [
    ("base", "{base}"),
    ("Japanese fine-tune; maths fine-tune", "{source:0}; {source:1}"),
    ("plain average; with examples in the prompt", "{average}; {prompt}"),
    ("one parent alone, rescaled by search", "{alone}"),
    ("**evolved merge: of weights; of layers**", "**{ps}; {dfs}**"),
]
CARDS = {"ps": ("PS", "evolved-ps"), "dfs": ("DFS", "evolved-dfs"), "hybrid": ("PS+DFS", "evolved")}
# The README's second table, row by row: a file of results, its problem, and the methods of the row.
RUNS = [
    ("search/real", "16 search examples", ["default", "lora-parent-1-1"]),
    ("search/real-again", "16 search examples", ["together"]),
    ("search/real-again", "512 search examples", ["default", "lora-parent-1-0", "together"]),
    ("search/adapters", "json, 16", ["default", "scratch-1e-3"]),
    ("search/gemma-again", "16 search examples", ["default", "lora-parent-1-1"]),
    ("search/gemma-again", "128 search examples", ["default", "lora-parent-1-0"]),
    ("reactions", "schneider_b, 128", ["parent-0"]),
    ("reactions", "schneider_b, 16", ["default", "lora-0"]),
    ("reactions", "schneider_b, 128", ["default", "lora-0"]),
]


def demo_rows(space: str) -> list[dict[str, Any]]:
    """The rows of the results of one of the demo's searches."""
    record = json.loads((DEMO / space / "study.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = record["results"]["rows"]
    return rows


def readme_table() -> str:
    """The share of held-out problems that each model of the demo solves; of what both searches
    have, the better one."""
    shares: dict[str, float] = {}
    for row in demo_rows("ps") + demo_rows("dfs"):
        for name in (row["stage"], row["label"]):
            shares[name] = max(row["accuracy"], shares.get(name, 0.0))
    texts = {name: f"{share:.1%}".replace("%", " %") for name, share in shares.items()}
    lines = ["| maths problems in Japanese, 500 that no search saw | solved |", "| --- | --- |"]
    for names, figures in README_TABLE:
        for name, text in texts.items():
            figures = figures.replace(f"{{{name}}}", text)
        lines.append(f"| {names} | {figures} |")
    return "\n".join(lines) + "\n"


def gallery_table() -> str:
    """The accuracy of the three winners, and what they are."""
    lines = ["| | accuracy on 500 held-out problems | what it is | card |"]
    lines.append("| --- | --- | --- | --- |")
    for space, (name, card) in CARDS.items():
        winner = next(row for row in demo_rows(space) if row["winner"])
        accuracy = plus_minus(winner["accuracy"], winner["accuracy_se"])
        link = f"[{card}](../../model_cards/demo/{space}/README.md)"
        lines.append(f"| {name} | {accuracy} | {_kind(space)} | {link} |")
    return "\n".join(lines) + "\n"


def _kind(space: str) -> str:
    """What a winner is, in words."""
    flow = Recipe.load(DEMO / space / "recipe.yaml").flow
    if flow is None:
        return "a plain Llama of 8 layers: a weight for each source and run of 64 rows of a tensor"
    among = "the merge and its parents" if space == "hybrid" else "the layers of both"
    return f"a path of {len(flow.to_path())} hops through {among}"


def run_figures() -> Iterator[float]:
    """The mean accuracy of each method of `RUNS` over its draws. Draw 0, by which settings were
    chosen, is left out."""
    for file, problem, methods in RUNS:
        lines = (RESULTS / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
        runs = [run for run in map(json.loads, lines) if run["problem"] == problem and run["draw"]]
        for method in methods:
            marks = (run["marks"][-1] for run in runs if run["method"] == method)
            yield round(fmean(mark["test"]["accuracy"] for mark in marks), 3)


def evidence_figures() -> Iterator[float]:
    """The mean accuracy of merge, LoRA and both over draws: on the pair *travel*, and on the demo's
    three families, with 16 examples."""
    lines = (RESULTS / "search" / "evidence.jsonl").read_text(encoding="utf-8").splitlines()
    cells = [json.loads(line) for line in lines]
    families = ("demo", "family-1", "family-2")
    for pairs in (("travel",), families):
        few = [cell for cell in cells if cell["examples"] == 16]
        rows = [row for cell in few if cell["pair"] in pairs for row in cell["rows"]]
        for stage in ("ps", "lora", "together"):
            rights = [row["right"] for row in rows if row["stage"] == stage]
            yield round(fmean(right.count("1") / len(right) for right in rights), 3)


def skill_figures() -> Iterator[float]:
    """The mean share kept of both skills by average, merge, LoRA, and both, over three families and
    their draws: from 128 prompts of each parent, and from 16 with more that are made of them."""
    lines = (RESULTS / "search" / "skills.jsonl").read_text(encoding="utf-8").splitlines()
    for kind, count in (("prompts", 128), ("varied", 16)):
        names = [f"{family}:{kind}" for family in ("demo", "family-1", "family-2")]
        cells = [cell for cell in map(json.loads, lines) if cell["pair"] in names]
        kinds = [cell["rows"] for cell in cells if cell["examples"] == count]
        for stage in ("average", "merge", "lora", "together"):
            yield round(fmean(_kept(rows, stage) for rows in kinds), 2)


def _kept(rows: dict[str, dict[str, str]], stage: str) -> float:
    """The mean share of the better parent's accuracy, over both skills, which take turns."""
    shares = []
    for skill in (0, 1):
        solved, *best = (
            rows[name]["right"][skill::2].count("1") for name in (stage, "first", "second")
        )
        shares.append(solved / max(best))
    return fmean(shares)


def with_table(text: str, table: str) -> str:
    """A page with a table in place of the one that has the same heading."""
    heading = table.partition("\n")[0]
    before, found, rest = text.partition(heading)
    if not found:
        raise LookupError(f"no table begins {heading!r}")
    return before + table + "\n" + rest.partition("\n\n")[2]


def main() -> None:
    """Write the tables of the demo's models."""
    for page, table in ((README, readme_table()), (GALLERY, gallery_table())):
        text = with_table(page.read_text(encoding="utf-8"), table)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
