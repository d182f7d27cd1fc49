"""The sections of golden hashes that compute: merges, searches, and searches that are stopped and
resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from facts import Facts, Golden, model_facts, search_facts, tensor_bytes

MOVABLE = {  # internals that have no public name: the modules that they may be in, the newest first
    "LiveMerger": ("hf_evomerge.merging.live",),
    "read": ("reading", "published"),  # of the Space
}
CASES: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("cases.yaml").read_text(encoding="utf-8")
)
Case = tuple[str, list[dict[str, Any]], dict[str, Any]]


def internal(name: str) -> Any:
    """An object that has no public name, from the first of its modules that has it."""
    for module in MOVABLE[name]:
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"{name} is in none of {', '.join(MOVABLE[name])}; add its module to MOVABLE")


def settings(name: str, models: Path) -> dict[str, Any]:
    """A search file, whole."""
    given = placed({**CASES["plain"], **CASES["searches"][name]}, models)
    given["data"] = {
        split: {"jsonl": str(models / f"{split}.jsonl")}
        for split in ("search", "validation", "test")
    }
    if "retain" in given["compare"]:
        retained = {
            split: {"jsonl": str(models / f"{split}.jsonl")} for split in given["compare"]["retain"]
        }
        given["compare"] = {**given["compare"], "retain": retained}
    return given


def placed(given: Mapping[str, Any], models: Path) -> dict[str, Any]:
    """A recipe or a search whose sources are folders, where they were names."""

    def place(source: Any) -> Any:
        named = {"model": source} if isinstance(source, str) else source
        return {key: str(models / name) for key, name in named.items()}

    base = given.get("base")
    return {
        **given,
        "sources": [place(source) for source in given["sources"]],
        "base": None if base is None else place(base),
    }


def merge_section(golden: Golden) -> None:
    """Every method as a function, in memory and on disk; recipes of other kinds, and their
    folds."""
    from hf_evomerge import fold, merging

    if missing := merging.all_methods().keys() - {method for method, *_ in CASES["merges"]}:
        golden.complain(
            f"no case of {', '.join(sorted(missing))}; add a line to merges in cases.yaml"
        )
    for dtype in ("float32", "bfloat16"):
        for number, case in enumerate(CASES["merges"]):
            with golden.trying(f"merge {number} as {dtype}"):
                merge_three_ways(golden, number, case, dtype)
    for name, recipe in CASES["builds"].items():
        with golden.trying(f"merge {name}"):
            folder = build(
                golden, f"merge/{name}", {"base": "base", **recipe}, golden.inputs / "float32"
            )
            if "flow" in recipe and "sums" not in name:
                plain = fold(folder, golden.work / "folded" / name)
                golden.put_all(f"merge/{name}/folded", model_facts(plain))


def merge_three_ways(golden: Golden, number: int, case: Case, dtype: str) -> None:
    """One case as a function, in memory and on disk."""
    method, parameters, options = case
    name = f"merge/{number:02}-{method}/{dtype}"
    names = list("abc"[: len(parameters)])
    models = golden.inputs / dtype
    based = method not in CASES["baseless"] and (method not in CASES["either"] or number % 2 == 0)
    base = "base" if based else None
    golden.put(f"{name}/function", tensor_bytes(by_function(models, names, base, case)))
    golden.put(f"{name}/memory", tensor_bytes(in_memory(models, names, base, case)))
    merge = {"method": method, "parameters": parameters, "options": options}
    build(golden, f"{name}/disk", {"sources": names, "base": base, "merge": merge}, models)


def by_function(models: Path, names: Sequence[str], base: str | None, case: Case) -> dict[str, Any]:
    """Every tensor merged by the method's function; of layer groups the default counts."""
    from safetensors.torch import load_file

    from hf_evomerge import merging

    method, parameters, options = case
    function = getattr(merging, method)
    arguments = CASES["arguments"]
    known = signature(function).parameters
    sources = [load_file(models / name / "model.safetensors") for name in names]
    bases = {} if base is None else load_file(models / base / "model.safetensors")
    given = {arguments.get(key, key): flat(value) for key, value in options.items()}
    for key in {key: None for mapping in parameters for key in mapping}:
        argument = arguments.get(key, key)
        given[argument] = [
            flat(mapping.get(key, known[argument].default)) for mapping in parameters
        ]
    merged = {}
    for name in sorted(sources[0]):
        more = {"name": name, "seed": 3} if "seed" in known else {}
        more |= {} if base is None else {"base": bases[name]}
        merged[name] = function(sources=[source[name] for source in sources], **given, **more)
    return merged


def in_memory(models: Path, names: Sequence[str], base: str | None, case: Case) -> dict[str, Any]:
    """A merge written into a model that stays in memory, after another merge."""
    from transformers import AutoModelForCausalLM

    from hf_evomerge import open_source

    method, parameters, options = case
    sources = [open_source(str(models / name)) for name in names]
    ancestor = None if base is None else open_source(str(models / base))
    model = AutoModelForCausalLM.from_pretrained(models / "a", trust_remote_code=False)
    merger = internal("LiveMerger")(sources, ancestor, method, options, seed=3, model=model)
    merger.apply([{} for _ in parameters])
    merger.apply(parameters)
    return dict(model.state_dict())


def flat(value: Any) -> Any:
    """One value of those of layer groups or of a gradient."""
    value = value["default"] if isinstance(value, dict) else value
    return value[0] if isinstance(value, list) else value


def build(golden: Golden, name: str, recipe: Mapping[str, Any], models: Path) -> Path:
    """Build a recipe, and hash what it gives."""
    from hf_evomerge import Recipe, build_model

    folder = build_model(
        Recipe.model_validate({"seed": 3, **placed(recipe, models)}), golden.work / name
    )
    golden.put_all(name, model_facts(folder))
    return folder


def search_section(golden: Golden) -> None:
    """Every kind of search, whole."""
    for name in CASES["searches"]:
        with golden.trying(f"search {name}"):
            golden.put_all(f"search/{name}", searched(golden, name))


def searched(golden: Golden, name: str) -> Facts:
    """What a search leaves that runs to its end; it is run once."""
    folder = golden.work / "search" / name
    if name not in golden.steps:
        golden.steps[name] = run_until(golden, name, folder, None)
    return search_facts(folder, golden.plain)


def run_until(golden: Golden, name: str, folder: Path, stop: int | None) -> int:
    """Run a search until it has reported its progress so many times, or to its end; gives how many
    times that was."""
    from hf_evomerge import SearchCallback, SearchConfig, run_search

    class StoppedError(Exception):
        """As if the process had been killed."""

    class Steps(SearchCallback):
        count = 0

        def on_progress(self, study: Any, progress: Any) -> None:
            self.count += 1
            if self.count == stop:
                raise StoppedError

    steps = Steps()
    config = SearchConfig.model_validate(settings(name, golden.inputs / "float32"))
    with suppress(StoppedError):
        run_search(config, folder, callbacks=[steps])
    return steps.count


def resume_section(golden: Golden) -> None:
    """Every search stopped and resumed."""
    for name in CASES["searches"]:
        with golden.trying(f"resume {name}"):
            resume_one(golden, name)


def resume_one(golden: Golden, name: str) -> None:
    """Stop a search after a third and two thirds of its steps, or at each, and resume it: nothing
    may differ."""
    from hf_evomerge import resume_search

    whole = searched(golden, name)
    steps = golden.steps[name]
    for number, stop in enumerate(
        range(1, steps + 1) if golden.thorough else (steps // 3, 2 * steps // 3), 1
    ):
        folder = golden.work / "resume" / f"{name}-{stop}"
        run_until(golden, name, folder, stop)
        resume_search(folder)
        again = search_facts(folder, golden.plain)
        parts = [
            part
            for part in sorted(whole.keys() | again.keys())
            if whole.get(part) != again.get(part)
        ]
        if parts:
            golden.complain(
                f"{name}, stopped at step {stop} of {steps} and resumed, has other "
                f"{', '.join(parts)}"
            )
        label = f"step {stop}" if golden.thorough else f"{number} of 3"
        golden.put(f"resume/{name}/{label}", ", ".join(parts) or "as if it had not been stopped")
