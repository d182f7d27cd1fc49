"""Results as Markdown and as a picture: means over families of the means over draws of examples,
and the range of all runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from charts import DPI, GREY, MARKERS, PALETTE, project_style, save
from lab import SEARCH
from methods import METHODS, Method
from numpy.typing import NDArray
from records import Record, examples

from hf_evomerge import Scores
from hf_evomerge.fitness.comparison import compare

SHOWN = (25, 50, 75, 100, 150, 200, 600)
REFERENCE = ("ps-cma", 600)
NONE = "–"  # noqa: RUF001 (a dash)
Problem = tuple[str, int]
Values = list[tuple[str, float]]
"""Families and values."""


class Results:
    """Records by method and problem.

    Args:
        records: Of one kind of problem.
        methods: The methods, in the order of the table.

    Attributes:
        names: The method of each label; of those that differ in a setting alone, the one that is
            best on held-out examples.
        problems: Families and draws.
    """

    def __init__(self, records: Sequence[Record], methods: dict[str, Method] = METHODS) -> None:
        self.records = records
        self.methods = methods
        self.problems: list[Problem] = sorted(
            {(record["problem"], record["draw"]) for record in records}
        )
        self.names: dict[str, str] = {}
        for name in (name for name in methods if self.of(name)):
            other = self.names.get(methods[name].label)
            if other is None or self._quality(name) > self._quality(other):
                self.names[methods[name].label] = name

    def of(self, name: str, problem: Problem | None = None) -> list[Record]:
        """Runs of a method (on a problem), the smallest budget first."""
        found = [
            r
            for r in self.records
            if r["method"] == name and problem in (None, (r["problem"], r["draw"]))
        ]
        return sorted(found, key=lambda record: int(record["budget"]))

    def final(self, name: str) -> list[Record]:
        """The runs of the greatest budget that the method was given on any problem."""
        runs = self.of(name)
        return [run for run in runs if run["budget"] == runs[-1]["budget"]]

    def _quality(self, name: str) -> tuple[int, float]:
        final = self.final(name)
        return len(final), fmean(record["marks"][-1]["test"]["loglik"] for record in final)

    def at(self, name: str, cost: int) -> Values:
        """Accuracy at a cost, per problem: at the end of the run with this budget, or at a mark of
        a longer one."""
        found = []
        for problem in self.problems:
            for run in (run for run in self.of(name, problem) if run["budget"] >= cost):
                if marks := [mark for mark in run["marks"] if mark["cost"] == cost]:
                    found.append((problem[0], float(marks[0]["test"]["accuracy"])))
                    break
        return found

    def costs_to_reach(self, name: str) -> list[int | None]:
        """Per problem the least cost at which the held-out log-likelihood is that of the reference,
        where it gets there."""
        costs: list[int | None] = []
        for problem in self.problems:
            runs = self.of(name, problem)
            reference = [
                run for run in self.of(REFERENCE[0], problem) if run["budget"] == REFERENCE[1]
            ]
            if runs and reference:
                goal = reference[0]["marks"][-1]["test"]["loglik"]
                reached = [
                    mark["cost"]
                    for run in runs
                    for mark in run["marks"]
                    if mark["test"]["loglik"] >= goal
                ]
                costs.append(min(reached, default=None))
        return costs


def table(records: Sequence[Record], methods: dict[str, Method] = METHODS) -> str:
    """Two tables: held-out accuracy at every cost, and what each method ends with."""
    results = Results(records, methods)
    return "\n\n".join(
        [*([_at_costs(results)] if results.of(REFERENCE[0]) else []), _at_the_end(results)]
    )


def write_into(document: Path, name: str, text: str) -> None:
    """Put a text between the two comments of a document that name it."""
    begin = f"<!-- {name}: begin -->\n"
    end = f"<!-- {name}: end -->"
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{document}: has no {begin.strip()} followed by {end.strip()}")
    document.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def _at_costs(results: Results) -> str:
    rows = [["held-out accuracy at a cost of", *map(str, SHOWN)]]
    for label, name in results.names.items():
        if max(results.methods[name].budgets) >= SHOWN[0]:
            rows.append([label, *(_spread(results.at(name, cost)) for cost in SHOWN)])
    return _markdown(rows)


def _at_the_end(results: Results) -> str:
    own = list(results.records[0]["own"])
    goal = (
        f"cost to reach {results.methods[REFERENCE[0]].label} at {REFERENCE[1]}"
        if results.of(REFERENCE[0])
        else ""
    )
    reference = [goal] if goal else []
    minutes = ["CPU minutes"] if all("cpu" in record for record in results.records) else []
    several = len({record["problem"] for record in results.records}) > 1
    heads = [
        "",
        "cost",
        "runs of families" if several else "runs",
        "accuracy",
        "log-likelihood",
        "search minus held-out",
        *reference,
        *(f"own: {x}" for x in own),
    ]
    rows = [[*heads, *minutes]]
    for label, name in results.names.items():
        final = results.final(name)

        def values(value: Callable[[Record], float], final: list[Record] = final) -> Values:
            return [(record["problem"], value(record)) for record in final]

        last = [record["marks"][-1] for record in final]
        rows.append(
            [
                label,
                f"{final[-1]['budget'] * examples(final[-1]) / SEARCH:g}",
                f"{len(final)} of {len({record['problem'] for record in final})}"
                if several
                else str(len(final)),
                _spread(values(lambda record: record["marks"][-1]["test"]["accuracy"])),
                _spread(values(lambda record: record["marks"][-1]["test"]["loglik"])),
                f"{fmean(gap):.3f}"
                if (
                    gap := [
                        m["search"]["loglik"] - m["test"]["loglik"] for m in last if "search" in m
                    ]
                )
                else "",
                *(_reached(results.costs_to_reach(name)) for _ in reference),
                *(
                    f"{_mean(values(lambda record, task=task: record['own'][task]['accuracy'])):.2f}"  # noqa: E501
                    for task in own
                ),
                *(f"{fmean(record['cpu'] for record in final) / 60:.1f}" for _ in minutes),
            ]
        )
    return _markdown(rows)


def sizes_table(parts: Mapping[int, Sequence[Record]], methods: dict[str, Method]) -> str:
    """Held-out accuracy and log-likelihood over the number of search examples, of every method that
    ran on several.

    Args:
        parts: Records at one cost by the number of examples.
        methods: The methods, in the order of the table.
    """
    cells: dict[str, dict[int, str]] = {}
    for count, records in parts.items():
        results = Results(records, methods)
        for label, name in results.names.items():
            tests = [
                (record["problem"], record["marks"][-1]["test"]) for record in results.final(name)
            ]
            cells.setdefault(label, {})[count] = "; ".join(
                _spread([(family, test[what]) for family, test in tests])
                for what in ("accuracy", "loglik")
            )
    rows = [["accuracy; log-likelihood", *map(str, parts)]]
    rows += [
        [label, *(of.get(count, "") for count in parts)]
        for label, of in cells.items()
        if len(of) > 1
    ]
    return _markdown(rows)


def leads_table(
    records: Sequence[Record],
    methods: dict[str, Method],
    others: Sequence[str],
    what: Literal["right", "loglik"],
) -> str:
    """By how much each method is better than some others, on the same held-out examples.

    Where both ran on several draws of search examples, the interval is of the mean over these
    draws, by a bootstrap over the held-out examples; p is of each draw: McNemar's exact test for
    right answers, a test by random signs for log-likelihoods.

    Args:
        records: Of one number of search examples, with `held_out`; a method that needs no search
            has one record for all draws.
        methods: The methods, in the order of the table.
        others: What they are compared with, where it ran.
        what: Which scores.
    """
    results = Results(records, methods)
    chosen = [other for other in others if results.of(other)]
    rows = [
        [
            {"right": "accuracy", "loglik": "log-likelihood"}[what],
            *(f"over {methods[other].label}" for other in chosen),
        ]
    ]
    for label, name in results.names.items():
        if max(methods[name].budgets) > 1:
            rows.append([label, *(_lead(results, name, other, what) for other in chosen)])
    return _markdown(rows)


def _lead(results: Results, name: str, other: str, what: str) -> str:
    """Difference, interval, and p of each draw."""
    known = results.final(other)[-1]
    pairs = []
    for record in results.final(name) if name != other else []:
        same = results.of(other, (record["problem"], record["draw"]))
        if same or known["budget"] == 1:
            pairs.append([_column(each, what) for each in (record, same[-1] if same else known)])
    if not pairs:
        return ""
    whole = compare(
        *(Scores(np.mean(column, axis=0)) for column in zip(*pairs, strict=True)), "fitness"
    )
    each = [compare(Scores(one), Scores(two), "fitness") for one, two in pairs]
    assert whole is not None
    p = ", ".join(
        "< .0001" if found.p < 1e-4 else f"{found.p:.2g}".removeprefix("0")
        for found in each
        if found is not None
    )
    return f"{_signed(whole.difference)} ({_signed(whole.low)} to {_signed(whole.high)}); p {p}"


def _column(record: Record, what: str) -> NDArray[np.float64]:
    return np.array([float(each) for each in record["held_out"][what]])


def _signed(value: float) -> str:
    return re.sub(r"(?<=[+-])0(?=\.)", "", f"{value:+.3f}")


def _reached(costs: list[int | None]) -> str:
    """Least and greatest cost, and in how many problems it was enough where it was not in all."""
    found = [cost for cost in costs if cost is not None]
    if not found:
        return NONE if costs else ""
    span = f"{min(found)}" if len(set(found)) == 1 else f"{min(found)} to {max(found)}"
    return span if len(found) == len(costs) else f"{span} ({len(found)} of {len(costs)})"


def _mean(values: Values) -> float:
    """The mean of the families' means, so that a family with more runs does not count for more."""
    return fmean(
        fmean(value for family, value in values if family == each)
        for each in {family for family, _ in values}
    )


def _spread(values: Values) -> str:
    """Mean, and least and greatest."""
    if not values:
        return ""
    numbers = [value for _, value in values]
    text = [
        f"{value:.3f}".removeprefix("0") for value in (_mean(values), min(numbers), max(numbers))
    ]
    text = [part.replace("-0.", "-.") for part in text]
    return text[0] if len(values) == 1 else f"{text[0]} ({text[1]} to {text[2]})"


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]])


PANELS = (
    (
        "parameter space (PS), and fine-tuning",
        ("ps-gradient", "ps-cma-grow", "ps-cma", "random", "tpe", "lora"),
    ),
    ("data flow space (DFS), and both", ("dfs-gradient", "dfs-cma-grow", "dfs-slot", "hybrid")),
)


def plot(records: Sequence[Record], file: str | Path) -> None:
    """Draw held-out accuracy over cost: the mean over families, and a band from the least to the
    greatest run."""
    from matplotlib.figure import Figure

    results = Results(records)
    with project_style():
        figure = Figure(figsize=(9.6, 4.4), dpi=120, layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (title, names) in zip(panels, PANELS, strict=True):
            lines = _lines(results, names)
            for index, (label, name) in enumerate(lines):
                _draw(axes, results, label, name, index)
            axes.set(title=title, xscale="log", xlabel="cost, in scores of the 128 search examples")
            axes.set_xticks(SHOWN, [str(cost) for cost in SHOWN], minor=False)
            axes.minorticks_off()
            axes.set_xlim(SHOWN[0] * 0.85, SHOWN[-1] * 1.15)
            axes.set_ylim(0, 1.02)
            axes.grid(axis="y", color=GREY, alpha=0.2, linewidth=0.6)
            axes.legend(loc="lower right", fontsize=8, handlelength=2.4)
        panels[0].set_ylabel("held-out accuracy")
    save(figure, file)


def plot_sizes(
    records: Sequence[Record],
    file: str | Path,
    cost: float | None,
    methods: dict[str, Method] = METHODS,
) -> None:
    """Draw what was reached at one cost over the number of search examples: means over problems,
    and least to greatest.

    Args:
        records: Of any number of examples; those of another cost are left out, and methods that
            have a single number. The plain average, which needs none, is a line across.
        file: A picture.
        cost: In scores of 128 examples; a budget is a whole number of scores, so half a score of
            the split is allowed for. None: all records are of one cost.
        methods: The methods, in the order of the legend.
    """
    from matplotlib.figure import Figure

    paid = [
        r
        for r in records
        if r["budget"] > 1 and (cost is None or abs(r["budget"] - cost * SEARCH / examples(r)) < 1)
    ]
    averages = [record["marks"][-1]["test"] for record in records if record["method"] == "average"]
    counts = sorted({examples(record) for record in paid})
    lines: dict[str, dict[int, list[Record]]] = {}
    for count in counts:
        results = Results([record for record in paid if examples(record) == count], methods)
        for label, name in results.names.items():
            lines.setdefault(label, {})[count] = [
                record["marks"][-1]["test"] for record in results.of(name)
            ]
    with project_style():
        figure = Figure(figsize=(9.6, 4.4), dpi=DPI, layout="constrained")
        for axes, what, name in zip(
            figure.subplots(1, 2),
            ("accuracy", "loglik"),
            ("held-out accuracy", "held-out log-likelihood, nats"),
            strict=True,
        ):
            shown = [(label, of) for label, of in lines.items() if len(of) > 1]
            for index, (label, of) in enumerate(shown):
                colour = PALETTE[index % len(PALETTE)]
                values = [[test[what] for test in of[count]] for count in of]
                axes.fill_between(
                    list(of),
                    [min(v) for v in values],
                    [max(v) for v in values],
                    color=colour,
                    alpha=0.15,
                    lw=0,
                )
                marker = MARKERS[index % len(MARKERS)]
                axes.plot(
                    list(of),
                    [fmean(v) for v in values],
                    color=colour,
                    marker=marker,
                    markersize=5,
                    label=label,
                )
            if averages:
                axes.axhline(
                    fmean(test[what] for test in averages),
                    color=GREY,
                    linestyle="--",
                    linewidth=1,
                    label="average",
                )
            axes.set(xscale="log", xlabel="search examples", ylabel=name)
            axes.set_xticks(counts, [str(count) for count in counts], minor=False)
            axes.minorticks_off()
            axes.grid(axis="y", color=GREY, alpha=0.2, linewidth=0.6)
        figure.axes[0].set_ylim(0, 1.02)
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            fontsize=8,
        )
    save(figure, file)


def _lines(results: Results, names: Sequence[str]) -> list[tuple[str, str]]:
    """Label and method of each line that has results; `lora` is the best fine-tuning there is."""
    chosen = {name: label for label, name in results.names.items()}
    lines = []
    for name in names:
        if name == "lora":
            tuned = [each for each in chosen if each.startswith("lora")]
            best = max(
                tuned,
                key=lambda each: fmean(
                    r["marks"][-1]["test"]["accuracy"] for r in results.final(each)
                ),
                default=None,
            )
            lines += [(chosen[best], best)] if best is not None else []
        elif name in chosen:
            lines.append((chosen[name], name))
    return lines


def _draw(axes: Any, results: Results, label: str, name: str, index: int) -> None:
    values = {cost: found for cost in SHOWN if (found := results.at(name, cost))}
    costs = list(values)
    spans = [[number for _, number in found] for found in values.values()]
    colour = PALETTE[index % len(PALETTE)]
    marker = MARKERS[index % len(MARKERS)]
    axes.fill_between(
        costs,
        [min(span) for span in spans],
        [max(span) for span in spans],
        color=colour,
        alpha=0.15,
        lw=0,
    )
    axes.plot(
        costs,
        [_mean(found) for found in values.values()],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.8,
        label=label,
    )
