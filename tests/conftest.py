"""A tiny family on disk for the tests of whole searches: a base, two fine-tunes of it, a deeper
relative, and problems."""

import gc
import json
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from searches import as_read
from skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401
from warm import warm_workers

from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.file.config import SearchConfig

os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # as the command line does it: tests run beside each other
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny
gc.disable()  # until all is imported
_frozen = 0


def pytest_collection_finish():
    """Keep what was imported out of garbage collection: a search collects often, and looks at a
    million objects each time."""
    global _frozen
    gc.collect()
    gc.freeze()
    gc.enable()
    _frozen = len(sys.modules)


def pytest_runtest_logreport(report):
    """Keep out what fixtures or a test imported as well."""
    if report.when != "call" and len(sys.modules) > _frozen + 9:
        pytest_collection_finish()


@pytest.fixture(scope="session", autouse=True)
def _warm_workers():
    """Workers of searches begin with torch imported."""
    with warm_workers():
        yield


WORDS = [*(f"w{number}" for number in range(12)), *map(str, range(10))]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
MadeOnce = Callable[[str, Callable[[Path], object]], Path]
SPLITS = {"search": 5, "validation": 4, "test": 6}


def _save_family(folder, dtype):
    """Problems, and Llamas of two blocks: the fine-tunes are the base plus noise; ``deep`` has a
    third block."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from words import word_tokenizer

    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(SPECIAL + WORDS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
    }
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(
        **sizes,
        **ids,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=48,
        initializer_range=0.4,
    )
    base = LlamaForCausalLM(config)
    models = {"base": base}
    for name in ("a", "b"):
        models[name] = LlamaForCausalLM(config)
        models[name].load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in models[name].parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    models["deep"] = LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 3}))
    for name, model in models.items():
        model.to(getattr(torch, dtype)).save_pretrained(folder / name)
        word_tokenizer(SPECIAL + WORDS).save_pretrained(folder / name)
    rng = random.Random(0)
    for split, count in SPLITS.items():
        lines = []
        for number in range(count):
            prompt = " ".join([split[0] + str(number), *rng.choices(WORDS, k=rng.randint(3, 8))])
            lines.append(
                json.dumps(
                    {"prompt": prompt, "answer": " ".join(rng.choices(WORDS, k=rng.randint(1, 2)))}
                )
            )
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Gives a folder of this name that is made by the first process of the tests that asks for it;
    no test changes it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def folder_of(name, make):
        folder = root / name
        made = root / f"{name}.made"
        with FileLock(root / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session", autouse=True)
def _one_load_at_a_time():
    """Loads wait for each other: pages of earlier tests may still load, and transformers gives a
    process one at a time."""
    from transformers import PreTrainedModel

    lock = threading.RLock()
    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def alone(kind, *args, **more):
        with lock:
            return load(kind, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "from_pretrained", classmethod(alone))
        yield


@pytest.fixture(scope="session")
def tiny(made_once):
    """A folder with the models ``base``, ``a``, ``b`` and ``deep`` in float32, and a JSON-lines
    file per split."""
    return made_once("tiny", lambda folder: _save_family(folder, "float32"))


@pytest.fixture(scope="session")
def tiny_half(made_once):
    """As `tiny`, with the models in bfloat16."""
    return made_once("half", lambda folder: _save_family(folder, "bfloat16"))


OPTIMIZE = {
    "ps": "[{evaluations: 8, population: 4}]",
    "dfs": "[{evaluations: 8, population: 4, sigma: 1.0}]",
    "hybrid": "[{evaluations: 8, population: 4, space: ps}, "
    "{evaluations: 8, population: 4, sigma: 1.0, space: dfs}]",
}


@pytest.fixture(scope="session")
def search_settings(tiny):
    """Makes the settings of a small search of the tiny family; keywords replace whole sections,
    and may be as a search file has them."""

    def make(space="ps", folder=tiny, **more):
        return {
            "space": space,
            "sources": [{"model": str(folder / "a")}, {"model": str(folder / "b")}],
            "base": {"model": str(folder / "base")},
            **({} if space == "dfs" else {"merge": {"groups": "model"}}),
            **({} if space == "ps" else {"path": {"kind": "gates", "repetitions": 1}}),
            "optimize": yaml.safe_load(OPTIMIZE[space]),
            "fitness": {"task": "likelihood", "separator": " "},
            "data": {split: {"jsonl": str(folder / f"{split}.jsonl")} for split in SPLITS},
            "compare": {"finalists": 2},
            **as_read(more),
        }

    return make


@pytest.fixture(scope="session")
def search_config(search_settings):
    """Makes a small search of the tiny family."""
    return lambda *arguments, **more: validate(
        SearchConfig, search_settings(*arguments, **more), SearchError
    )


@pytest.fixture(scope="session")
def hybrid_search(made_once, search_config):
    """The folder of a finished hybrid search of the tiny family, its winner built."""
    from hf_evomerge.search.run import run_search

    config = search_config(
        "hybrid", path="{kind: paper, repetitions: 1, scales: slot, initialisation: paper}"
    )
    return made_once("hybrid", lambda folder: run_search(config, folder / "search")) / "search"
