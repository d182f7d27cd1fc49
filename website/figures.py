"""Writes the figures that pages quote, from files of results.

    python website/figures.py    # the tables of README and gallery

The demo's are in the records beside its cards (`website/cards.py`), the others in
`benchmarks/results`. `tests/test_figures.py` compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_evomerge.fitness.comparison import compare
from hf_evomerge.fitness.scores import Scores, plus_minus
from hf_evomerge.recipes.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "model_cards" / "demo"
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
GALLERY = ROOT / "benchmarks" / "pages" / "gallery.md"
README_TABLE = [
    ("base", "{base}"),
    ("Japanese fine-tune; maths fine-tune", "{source:0}; {source:1}"),
    (
        "plain average; sum; examples in the prompt",
        "{uniform average}; {sum of the task vectors}; {prompt}",
    ),
    ("one parent alone, rescaled by search", "{alone}"),
    ("**evolved merge: of weights; of layers**", "**{ps}; {dfs}**"),
]
CARDS = {"ps": ("PS", "evolved-ps"), "dfs": ("DFS", "evolved-dfs"), "hybrid": ("PS+DFS", "evolved")}
FAMILIES = ("demo", "family-1", "family-2")
# Rows of README's table of evidence: what the models are, the pairs of the cells, and the number of
# search examples.
EVIDENCE_TABLE = [
    ("[adapters of SmolLM2-135M](PAGE): passive, marks", ("passive",), 16),
    ("capitals, dates", ("travel",), 16),
    ("feelings, a code", ("trips",), 16),
    ("SmolLM2-135M: sums, JSON", ("smollm2",), 16),
    ("Gemma3-270M: the same", ("gemma",), 16),
    ("published classifiers", ("reactions",), 16),
    ("published encoder, rescaled", ("encoder",), 16),
    ("five families like the demo's", (*FAMILIES, "family-1b", "family-2b"), 16),
]
EVIDENCE_ROWS = {
    "base or parent": ("base", "source"),
    "prompt": ("prompt",),
    "alone": ("alone",),
    "merge": ("ps",),
    "LoRA": ("lora",),
    "both": ("together",),
}
SKILL_ROWS = {
    "average": "average",
    "merge": "merge",
    "LoRA from the sum": "lora",
    "LoRA beside the merge": "together",
}


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
        for name in (row["stage"], row["label"], row["model"]):
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


def evidence_table() -> str:
    """Mean accuracy over draws of what a search is compared with; ``=`` where no draw tells it from
    the merge."""
    cells = read("search/evidence")
    lines = [f"| pair | {' | '.join(EVIDENCE_ROWS)} |", f"|{' --- |' * (1 + len(EVIDENCE_ROWS))}"]
    for title, pairs, count in EVIDENCE_TABLE:
        own = [cell for cell in cells if cell["pair"] in pairs and cell["examples"] == count]
        figures = [_accuracy(own, stage) for stage in EVIDENCE_ROWS.values()]
        named = title.replace("PAGE", "benchmarks/pages/evidence.md")
        lines.append(f"| {named} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _accuracy(cells: list[dict[str, Any]], stages: tuple[str, ...]) -> str:
    """The mean accuracy of the best row of some kinds; empty where no cell has one."""
    found = []
    level = True
    for cell in cells:
        (merge,) = (_scores(row) for row in cell["rows"] if row["stage"] == "ps")
        rows = [_scores(row) for row in cell["rows"] if row["stage"] in stages]
        if rows:
            best = max(rows, key=lambda scores: scores.mean or 0.0)
            found.append(best.accuracy or 0.0)
            lead = compare(merge, best, "accuracy")
            level = level and lead is not None and lead.low <= 0 <= lead.high
    if not found:
        return ""
    mark = "=" if level and stages != ("ps",) else ""
    return f"{fmean(found):.3f}".removeprefix("0") + mark


def _scores(row: dict[str, Any]) -> Scores:
    """Scores of a row of a cell."""
    return Scores(row["values"], correct=[mark == "1" for mark in row["right"]])


def skill_table() -> str:
    """The mean share kept of both skills over three families and their draws: from 128 prompts of
    each parent, and from 16 with more that are made of them."""
    cells = read("search/skills")
    heads = ["prompts searched", *SKILL_ROWS]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for kind, count in (("prompts", 128), ("varied", 16)):
        names = [f"{family}:{kind}" for family in FAMILIES]
        own = [
            cell["rows"] for cell in cells if cell["pair"] in names and cell["examples"] == count
        ]
        kept = [fmean(_kept(rows, row) for rows in own) for row in SKILL_ROWS.values()]
        texts = [f"{each:.2f}".removeprefix("0") for each in kept]
        lines.append(f"| {count} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _kept(rows: dict[str, dict[str, str]], name: str) -> float:
    """The mean share of the better parent's accuracy, over both skills, which take turns."""
    shares = []
    for skill in (0, 1):
        solved, *best = (
            rows[each]["right"][skill::2].count("1") for each in (name, "first", "second")
        )
        shares.append(solved / max(best))
    return fmean(shares)


def read(name: str) -> list[dict[str, Any]]:
    """The lines of a file of results."""
    lines = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def with_table(text: str, table: str) -> str:
    """A page with a table in place of the one that has the same heading."""
    heading = table.partition("\n")[0]
    before, found, rest = text.partition(heading)
    if not found:
        raise LookupError(f"no table begins {heading!r}")
    return before + table + "\n" + rest.partition("\n\n")[2]


def main() -> None:
    """Write the tables."""
    tables = {README: [readme_table(), evidence_table(), skill_table()], GALLERY: [gallery_table()]}
    for page, own in tables.items():
        text = page.read_text(encoding="utf-8")
        for table in own:
            text = with_table(text, table)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
