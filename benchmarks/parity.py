"""Compares the merge methods with mergekit's, in float32: the largest difference of any element.

Makes a small Llama and three fine-tunes of it, merges them here and with mergekit, and prints a
table. mergekit is installed in a virtual environment of its own and only run, never imported here.
DARE and DELLA are random in both: they are compared element by element with the same random numbers
handed to both, and by the share that is kept and the factor on what is kept with random numbers of
their own. Where a method chooses elements, roundings may decide on one at the threshold: elements
that differ by more than roundings are counted.

Mixtures of experts of five architectures follow, with their routers merged on both sides, as a
table: from files in the layout in which such models are published, and in that of transformers'
classes, which mergekit merges in.

    python benchmarks/parity.py --venv /tmp/mergekit-venv
    # mixtures alone
    python benchmarks/parity.py --venv /tmp/mergekit-venv --mixtures
    # published files of these names alone
    python benchmarks/parity.py --venv /tmp/mergekit-venv --published "card-*"
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_evomerge.building.build import build_model
from hf_evomerge.errors import EvoMergeError
from hf_evomerge.mergekit import from_mergekit, to_mergekit
from hf_evomerge.merging.statistics import RandomField
from hf_evomerge.recipes.layer_groups import classify
from hf_evomerge.recipes.recipe import Recipe

CONFIGS = Path(__file__).parents[1] / "tests" / "mergekit" / "configs"
sys.path[:0] = [str(CONFIGS.parent), str(CONFIGS.parents[1] / "support")]
import zoo  # noqa: E402  the stand-ins of the models that published files name
from tiny_models import MIXTURES, tiny_model  # noqa: E402

MERGEKIT = "mergekit==0.1.5"
RUN = """
import json, sys
import numpy, torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
random = torch.bernoulli
def handed(probabilities):
    words = numpy.random.Philox(key=0).random_raw((probabilities.numel() + 3) // 4)
    numbers = torch.from_numpy(words.view("<u2")[: probabilities.numel()].astype("i4")).view(probabilities.shape)
    return (numbers < (probabilities * 65536).round()).to(probabilities.dtype)
for name, config in json.load(open(sys.argv[1])).items():
    torch.bernoulli = handed if "handed" in name else random
    options = MergeOptions(
        random_seed=0, copy_tokenizer=False, write_model_card=False, lora_merge_cache=sys.argv[2] + "-adapted"
    )
    try:
        run_merge(MergeConfiguration.model_validate(config), out_path=f"{sys.argv[2]}/{name}", options=options)
    except Exception as error:
        if not name.startswith(("handed-published", "mixture")):
            raise
        print(f"{name}: mergekit: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
"""  # noqa: E501
_TWO = [{"weight": 0.6}, {"weight": 0.9}]
_THREE = [{"weight": 0.7}, {"weight": 0.4}, {"weight": -0.3}]
_DENSE = [
    {"weight": 0.7, "density": 0.5},
    {"weight": 0.4, "density": 0.3},
    {"weight": 0.3, "density": 0.05},
]

_TRIMMED = [{**values, "gamma": 0.02} for values in _DENSE]


class Case(NamedTuple):
    """A merge: its method, parameters and options, and whether there is a base."""

    method: str
    parameters: list[dict[str, Any]]
    options: dict[str, Any]
    base: bool = True


CASES: dict[str, Case] = {
    "linear": Case("linear", _TWO, {}, base=False),
    "linear, not normalised": Case("linear", _THREE, {"normalize": False}, base=False),
    "slerp, t = 0.3": Case("slerp", [{}, {}], {"t": 0.3}),
    "passthrough": Case("passthrough", [{}], {}, base=False),
    "passthrough, scale": Case("passthrough", [{"scale": 0.7}], {}, base=False),
    "task_arithmetic": Case("task_arithmetic", _THREE, {}),
    "task_arithmetic, normalised, lambda": Case(
        "task_arithmetic", _TWO, {"normalize": True, "lambda": 0.8}
    ),
    "ties": Case("ties", _DENSE, {}),
    "ties, not normalised, lambda": Case("ties", _DENSE, {"normalize": False, "lambda": 1.3}),
    "ties, negative weight": Case("ties", [{"density": 0.6, **values} for values in _THREE], {}),
    "ties, l1": Case("ties", _DENSE, {"rescale": "l1"}),
    "dare_linear, density 1": Case("dare_linear", _THREE, {}),
    "dare_ties, density 1": Case("dare_ties", _THREE, {}),
    "dare_ties, density 1, normalised": Case("dare_ties", _TWO, {"normalize": True}),
    "dare_linear, numbers handed in": Case("dare_linear", _DENSE, {}),
    "dare_linear, handed in, normalised": Case(
        "dare_linear", _DENSE, {"normalize": True, "rescale": "none"}
    ),
    "dare_ties, numbers handed in": Case("dare_ties", _DENSE, {"lambda": 1.2}),
    "dare_ties, handed in, normalised": Case("dare_ties", _DENSE, {"normalize": True}),
    "della, numbers handed in": Case(
        "della", [{**values, "epsilon": 0.04} for values in _DENSE], {}
    ),
    "della_linear, numbers handed in": Case(
        "della_linear", [{**values, "epsilon": 0.04} for values in _DENSE], {}
    ),
    "dare_linear, density 0.4, random": Case("dare_linear", [{"weight": 1.0, "density": 0.4}], {}),
    "breadcrumbs": Case("breadcrumbs", _TRIMMED, {}),
    "breadcrumbs, l1, normalised": Case(
        "breadcrumbs", _TRIMMED, {"rescale": "l1", "normalize": True}
    ),
    "breadcrumbs, gamma against density": Case(
        "breadcrumbs", [{"weight": 0.8, "density": 0.9, "gamma": 0.5}], {}
    ),
    "breadcrumbs_ties": Case("breadcrumbs_ties", _TRIMMED, {}),
    "breadcrumbs_ties, normalised, lambda": Case(
        "breadcrumbs_ties", _TRIMMED, {"normalize": True, "lambda": 1.3}
    ),
    "della, density 1": Case("della", _THREE, {}),
    "della_linear, density 1, normalised": Case("della_linear", _TWO, {"normalize": True}),
    "della, random": Case("della", [{"weight": 1.0, "density": 0.4, "epsilon": 0.3}], {}),
    "della_linear, random": Case("della_linear", [{"weight": 1.0, "density": 0.7}], {}),
    "model_stock": Case("model_stock", [{}] * 3, {}),
    "model_stock, per row": Case("model_stock", [{}] * 3, {"filter_wise": True}),
    "sce": Case("sce", [{}] * 3, {}),
    "sce, select_topk": Case("sce", [{}] * 3, {"select_topk": 0.3}),
    "nuslerp": Case("nuslerp", _TWO, {}, base=False),
    "nuslerp, rows": Case("nuslerp", _TWO, {"nuslerp_flatten": False}, base=False),
    "nuslerp, columns": Case(
        "nuslerp", _TWO, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, base=False
    ),
    "nuslerp, base": Case("nuslerp", _TWO, {}),
    "nuslerp, base, rows": Case("nuslerp", _TWO, {"nuslerp_flatten": False}),
    "nuslerp, base, columns": Case(
        "nuslerp", _TWO, {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    ),
    "multislerp": Case("multislerp", _THREE, {}, base=False),
    "multislerp, base": Case("multislerp", _TWO, {}),
    "multislerp, base, not normalised": Case("multislerp", _THREE, {"normalize_weights": False}),
    "karcher": Case("karcher", [{}] * 3, {}, base=False),
    "nearswap": Case("nearswap", [{}], {"t": 0.004}),
    "ram": Case("ram", [{}] * 3, {"epsilon": 0.004}),
}

OF_MIXTURES = (
    "linear",
    "slerp, t = 0.3",
    "task_arithmetic",
    "ties",
    "dare_ties, numbers handed in",
)

FILES: dict[str, str] = {
    "file: slerp, gradients per filter": """
merge_method: slerp
base_model: source0
models: [{model: source0}, {model: source1}]
parameters:
  t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}, {value: 0.5}]
""",  # noqa: E501
    "file: linear, gradients and filters": """
merge_method: linear
models:
  - {model: source0, parameters: {weight: [0.1, 0.9]}}
  - {model: source1, parameters: {weight: [{filter: norm, value: 0.7}, {filter: layers.1., value: [0.2, 1, 0.4]}]}}
  - {model: source2}
parameters: {weight: 0.3}
""",  # noqa: E501
    "file: ties, gradient of the density": """
merge_method: ties
base_model: base
models:
  - {model: source0, parameters: {weight: 0.6, density: [1, 0.5, 0.2]}}
  - {model: source1, parameters: {weight: [0.2, 0.8], density: {filter: mlp, value: 0.4}}}
parameters: {normalize: true, int8_mask: true}
""",
    "file: task_arithmetic in slices": """
merge_method: task_arithmetic
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 1]}
      - {model: source0, layer_range: [0, 1], parameters: {weight: 0.5}}
      - {model: source1, layer_range: [0, 1]}
  - sources:
      - {model: source0, layer_range: [1, 3], parameters: {weight: [0.1, 0.9]}}
      - {model: source1, layer_range: [1, 3], parameters: {weight: [{filter: q_proj, value: 0}]}}
      - {model: base, layer_range: [1, 3]}
    parameters: {weight: 0.7}
parameters: {weight: 0.4, lambda: 1.1}
""",
    "file: slerp in slices": """
merge_method: slerp
base_model: source1
slices:
  - {sources: [{model: source0, layer_range: [0, 2]}, {model: source1, layer_range: [0, 2]}], parameters: {t: [0, 1]}}
  - sources: [{model: source0, layer_range: [2, 3]}, {model: source1, layer_range: [2, 3]}]
    parameters: {t: [{filter: up_proj, value: 0.2}]}
parameters: {t: [0.9, 0.3]}
""",  # noqa: E501
    "file: passthrough, two models": """
merge_method: passthrough
slices:
  - {sources: [{model: source0, layer_range: [0, 2]}]}
  - {sources: [{model: source1, layer_range: [1, 3]}]}
  - {sources: [{model: source2, layer_range: [0, 3]}]}
""",
    "file: passthrough, repeated and scaled": """
merge_method: passthrough
slices:
  - {sources: [{model: source0, layer_range: [0, 2]}]}
  - sources:
      - model: source0
        layer_range: [1, 3]
        parameters: {scale: [{filter: o_proj, value: 0}, {filter: down_proj, value: [0.5, 0.1]}, {value: 1}]}
  - {sources: [{model: source0, layer_range: [2, 3]}]}
""",  # noqa: E501
    "file: linear over different layers": """
merge_method: linear
slices:
  - sources:
      - {model: source0, layer_range: [0, 2], parameters: {weight: 0.8}}
      - {model: source1, layer_range: [1, 3], parameters: {weight: [0.3, 0.6]}}
  - {sources: [{model: source2, layer_range: [2, 3], parameters: {weight: 1}}]}
""",
}


def main() -> None:
    """Merge with both, and print the differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--venv", type=Path, default=Path(tempfile.gettempdir()) / "hf-evomerge-mergekit"
    )
    parser.add_argument("--mixtures", action="store_true", help="only mixtures of experts")
    parser.add_argument("--published", metavar="GLOB", help="only published files, of these names")
    arguments = parser.parse_args()
    python = install(arguments.venv)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if arguments.published is not None:
            published = localised(work, arguments.published)
            run_mergekit(
                python,
                work,
                {f"handed-published-{name}": in_float32(text) for name, text in published.items()},
            )
            compare_published(work, published)
            return
        compare_mixtures(work, python)
        if arguments.mixtures:
            return
        save_family(work, llama)
        names = {
            f"{'handed' if 'handed in' in case else 'case'}{number}": case
            for number, case in enumerate(CASES)
        }
        configs = {short: mergekit_config(work, CASES[case]) for short, case in names.items()}
        files = {f"file{number}": name for number, name in enumerate(FILES)}
        configs |= {
            short: yaml.safe_load(with_folders(work, FILES[name])) for short, name in files.items()
        }
        published = localised(work, "*")
        configs |= {
            f"handed-published-{name}": in_float32(text) for name, text in published.items()
        }
        run_mergekit(python, work, configs)
        base = load(work / "base")
        print(
            f"{'case':38} largest difference, of numbers up to "
            f"{max(float(t.abs().max()) for t in base.values()):.2f}"
        )
        for short, case in names.items():
            with handed_in() if "handed in" in case else nullcontext():
                ours = load(build_model(recipe(work, CASES[case]), work / "ours" / short))
            theirs = load(work / "theirs" / short)
            if "random" in case:
                for who, merged in (("here", ours), ("mergekit", theirs)):
                    print(f"{case:38} {who}: {shares(base, load(work / 'source0'), merged)}")
                continue
            print_difference(case, ours, theirs)
        compare_published(work, published)
        for short, name in files.items():
            read = from_mergekit(with_folders(work, FILES[name])).recipe
            assert from_mergekit(to_mergekit(read)[0]).recipe == read, name
            print_difference(
                name, load(build_model(read, work / "ours" / short)), load(work / "theirs" / short)
            )


def localised(work: Path, names: str) -> dict[str, str]:
    """The published files of these names, with stand-ins for their models."""
    return {
        file.stem: zoo.localise(file.read_text(), work / "zoo")
        for file in sorted(CONFIGS.glob(f"{names}.yml"))
    }


def in_float32(text: str) -> dict[str, Any]:
    """A published file, in the one dtype in which both round alike; iterations end when nothing
    changes any more."""
    config = {key: value for key, value in yaml.safe_load(text).items() if key != "out_dtype"}
    if config["merge_method"] == "karcher" and "parameters" in config:
        config["parameters"]["max_iter"] = min(config["parameters"].get("max_iter", 10), 50)
    return {**config, "dtype": "float32"}


def by_token(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, the rows of the vocabulary by token: mergekit's order of added ones
    changes from run to run."""
    tensors = load(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    rows = data["model"]["vocab"] | {
        token["content"]: token["id"] for token in data["added_tokens"]
    }
    order = [rows[token] for token in sorted(rows)]
    order += sorted(set(range(len(tensors["lm_head.weight"]))) - set(order))
    return tensors | {
        key: tensors[key][order] for key in ("model.embed_tokens.weight", "lm_head.weight")
    }


def compare_published(work: Path, published: dict[str, str]) -> None:
    """Build the published files, and count how many are built here, by mergekit, by both, by
    neither, and alike."""
    built = set()
    run = set()
    alike = set()
    for name, text in published.items():
        place = work / "theirs" / f"handed-published-{name}"
        read_rows = by_token if (place / "tokenizer.json").exists() else load
        theirs = read_rows(place)
        run |= {name} if theirs else set()
        try:
            with handed_in():
                read = from_mergekit(yaml.safe_dump(in_float32(text), sort_keys=False)).recipe
                ours = read_rows(build_model(read, work / "ours" / name))
        except EvoMergeError as error:
            print(f"{name:38} refused here: {str(error)[:120]}")
            continue
        built.add(name)
        if not theirs:
            print(f"{name:38} not merged by mergekit")
        elif any(ours[key].shape != theirs[key].shape for key in ours):
            shapes = [
                (key, list(ours[key].shape), list(theirs[key].shape))
                for key in ours
                if ours[key].shape != theirs[key].shape
            ]
            print(f"{name:38} other shapes: {shapes[0]}")
        elif (difference := print_difference(name, ours, theirs)) < 1e-5:
            alike.add(name)
        else:
            print(f"{name:38} differs by {difference:.2e}")
    both = len(built & run)
    neither = len(published) - len(built | run)
    print(
        f"published files: {len(published)}; built here {len(built)}, by mergekit "
        f"{len(run)}, both {both}, alike {len(alike)};"
    )
    print(
        f"refused by both {neither}, here alone {sorted(run - built)}, by mergekit alone "
        f"{sorted(built - run)}"
    )


def run_mergekit(python: Path, work: Path, configs: dict[str, Any]) -> str:
    """Merge with mergekit, each into the folder of its name in `work` / ``theirs``; what it has
    logged."""
    (work / "configs.json").write_text(json.dumps(configs))
    command = [python, "-c", RUN, work / "configs.json", work / "theirs"]
    return subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr


def compare_mixtures(work: Path, python: Path) -> None:
    """A table of the largest differences between the models that transformers loads from both."""
    cases: dict[str, tuple[Path, str]] = {}
    for architecture, fields in MIXTURES.items():
        for layout in ("published", "class"):
            folder = work / f"{architecture}-{layout}"
            save_family(
                folder,
                partial(tiny_model, architecture, **fields),
                save_original_format=layout == "published",
            )
            cases |= {f"mixture-{folder.name}-{case}": (folder, case) for case in OF_MIXTURES}
    log = run_mergekit(
        python,
        work,
        {name: mergekit_config(folder, CASES[case]) for name, (folder, case) in cases.items()},
    )
    print(
        "| architecture | to mergekit | class layout, all methods | published, "
        + " | published, ".join(OF_MIXTURES)
        + " |"
    )
    print("| --- " * (3 + len(OF_MIXTURES)) + "|")
    for architecture in MIXTURES:
        found = {
            name: loaded_difference(work, name, *cases[name])
            for name in cases
            if f"-{architecture}-" in name
        }
        published = [
            f"{rest:.0e}, experts {experts:.0e}"
            for name, (rest, experts) in found.items()
            if "-published-" in name
        ]
        same = max(max(each) for name, each in found.items() if "-class-" in name)
        kind = tiny_model(architecture, layers=1, **MIXTURES[architecture]).__class__.__name__
        known = (
            "inferred from the class"
            if f"No JSON architecture found for {kind}" in log
            else "known"
        )
        print(f"| {kind} | {known} | {same:.0e} | {' | '.join(published)} |")


def loaded_difference(work: Path, name: str, folder: Path, case: str) -> tuple[float, float]:
    """The largest difference outside experts and of experts; infinite where mergekit has not merged
    it."""
    with handed_in() if "handed in" in case else nullcontext():
        out = build_model(recipe(folder, CASES[case]), work / "ours" / name)
    if not load(work / "theirs" / name):
        return float("inf"), float("inf")
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(place, trust_remote_code=False).state_dict()
        for place in (out, work / "theirs" / name)
    )
    differences = {key: float((tensor - theirs[key]).abs().max()) for key, tensor in ours.items()}
    experts = [value for key, value in differences.items() if classify(key)[2] == "experts"]
    return max(value for key, value in differences.items() if classify(key)[2] != "experts"), max(
        experts
    )


def handed_in() -> AbstractContextManager[object]:
    """The random numbers that `RUN` hands to mergekit: the same for every tensor and source."""

    def numbers(field: RandomField, start: int, stop: int) -> np.ndarray:
        field._key = 0
        return own(field, start, stop)

    own = RandomField.numbers
    return patch.object(RandomField, "numbers", numbers)


def with_folders(work: Path, text: str) -> str:
    """A mergekit file that names the models of the family."""
    named = re.sub(r"\b(base|source\d)\b", lambda match: str(work / match[1]), text)
    return f"{named}dtype: float32\n"


def print_difference(
    case: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> float:
    """One line: the largest difference, which is returned, and how many elements differ by more
    than roundings."""
    assert set(ours) <= set(theirs), set(ours) ^ set(theirs)
    difference = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in ours])
    other = int((difference > 1e-5).sum())
    print(
        f"{case:38} "
        f"{float(difference.max()):.2e}{f', {other} of {len(difference)} elements' if other else ''}"  # noqa: E501
    )
    return float(difference.max())


def install(folder: Path) -> Path:
    """mergekit's own virtual environment."""
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", MERGEKIT], check=True)
    return python


def llama() -> PreTrainedModel:
    """A small dense model."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
    )
    return LlamaForCausalLM(config)


def save_family(work: Path, make: Callable[[], PreTrainedModel], **settings: Any) -> None:
    """A base and three fine-tunes of it, whose task vectors have something in common."""
    torch.manual_seed(0)
    base = make()
    base.save_pretrained(work / "base", **settings)
    common = [torch.randn_like(parameter) * 0.005 for parameter in base.parameters()]
    for index in range(3):
        tuned = make()
        tuned.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter, shared in zip(tuned.parameters(), common, strict=True):
                parameter.add_(shared + torch.randn_like(parameter) * 0.01)
        tuned.save_pretrained(work / f"source{index}", **settings)


def recipe(work: Path, case: Case) -> Recipe:
    """The case as a recipe."""
    data: dict[str, Any] = {
        "sources": [
            {"model": str(work / f"source{index}")} for index in range(len(case.parameters))
        ],
        "merge": {
            "method": case.method,
            "parameters": case.parameters,
            "options": case.options,
            "router": "merge",
        },
    }
    if case.base and case.method != "slerp":
        data["base"] = {"model": str(work / "base")}
    return Recipe.model_validate(data)


def mergekit_config(work: Path, case: Case) -> dict[str, Any]:
    """The case as mergekit's configuration."""
    options = {
        key: value == "l1" if key == "rescale" else value for key, value in case.options.items()
    }
    models = [
        {"model": str(work / f"source{i}"), "parameters": values}
        for i, values in enumerate(case.parameters)
    ]
    config: dict[str, Any] = {
        "merge_method": case.method,
        "models": models,
        "parameters": options,
        "dtype": "float32",
    }
    if case.base:
        config["base_model"] = str(work / ("source0" if case.method == "slerp" else "base"))
    return config


def load(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def shares(
    base: dict[str, torch.Tensor], source: dict[str, torch.Tensor], merged: dict[str, torch.Tensor]
) -> str:
    """The share of the task vector that is kept, of its smaller and its larger half, and the mean
    factor on it."""
    kept = torch.cat([(merged[name] != base[name]).flatten() for name in base])
    there = torch.cat([(merged[name] - base[name]).flatten() for name in base])
    whole = torch.cat([(source[name] - base[name]).flatten() for name in base])
    factor = float(there[kept].abs().sum() / whole[kept].abs().sum())
    large = whole.abs() > whole.abs().median()
    halves = (
        f"{float(kept[~large].float().mean()):.4f} and {float(kept[large].float().mean()):.4f} "
        "of the halves"
    )
    return f"{float(kept.float().mean()):.4f} kept, {halves}, times {factor:.4f}"


if __name__ == "__main__":
    main()
