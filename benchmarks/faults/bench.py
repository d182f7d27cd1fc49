"""What the parts share: a tiny family, a search and a build of it, children by fork, and whether
two results are the same."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes import merge_of, path_of
from searches import digests, facts

from hf_evomerge.building.build import build_model
from hf_evomerge.building.extracted import extract_adapter
from hf_evomerge.building.folded import fold
from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.run import run_search

Rows = dict[str, dict[str, int]]


def own_memory() -> int:
    """Bytes of memory of this process, files that it maps left out."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    return sum(int(sizes[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))


class Bench:
    """A family on disk, the recipe of a build and the file of a search, and what both give where
    nothing goes wrong.

    Args:
        scratch: An empty folder.
        evaluations: Of the search.
    """

    def __init__(self, scratch: Path, evaluations: int = 24) -> None:
        import torch
        from conftest import _save_family
        from families import save_family, tiny_config

        torch.set_num_threads(1)  # so that children can be forked
        with quiet():
            _save_family(scratch / "tiny", "float32")
            big = tiny_config(hidden_size=256, intermediate_size=768, num_hidden_layers=10)
            save_family(scratch / "big", big, torch.float32, count=2)
        tiny = scratch / "tiny"
        big = scratch / "big"
        self.scratch = scratch
        self._count = 0
        merge = {"parameters": [{"weight": 0.6, "density": 0.5}] * 2}
        self.recipe = merge_of(
            big / "source0", big / "source1", method="dare_ties", base=big / "base", merge=merge
        )
        self.recipe.save(scratch / "recipe.yaml")
        self.config = search_of(tiny, evaluations)
        self.config.save(scratch / "search.yaml")
        self.build(self.fresh())
        self.search(self.fresh())
        self.built, self.searched = self.of_build(scratch / "1"), self.of_search(scratch / "2")

    def more(self) -> dict[str, tuple[Callable[[Path], None], Callable[[Path], object], object]]:
        """What else a kill may hit: how each is done, what is compared of it, and what that is
        where nothing goes wrong."""
        from tiny_adapters import save_adapter

        tiny = self.scratch / "tiny"
        big = self.scratch / "big"
        path = path_of(
            big / "source0", big / "source1", hops=[*(f"{i % 2}:{i}" for i in range(10)), "0:9"]
        )
        adapters = [
            {"model": str(tiny / "base"), "adapter": str(self.scratch / f"lora{seed}")}
            for seed in (1, 2)
        ]
        with quiet():
            build_model(path, self.scratch / "routed")
            for seed in (1, 2):
                save_adapter(tiny / "base", self.scratch / f"lora{seed}", seed)
        settings = self.config.model_dump(mode="json", exclude_none=True) | {"sources": adapters}
        config = validate(SearchConfig, settings, SearchError)
        works: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
            "a fold": (lambda out: void(fold(self.scratch / "routed", out)), self.of_build),
            "an extraction": (
                lambda out: void(extract_adapter(str(big / "source0"), str(big / "base"), out)),
                self.of_build,
            ),
            "a search over adapters": (
                lambda out: void(run_search(config, out, build=False)),
                self.of_search,
            ),
        }
        found = {}
        for name, (work, of) in works.items():
            work(out := self.fresh())
            found[name] = work, of, of(out)
        return found

    def fresh(self) -> Path:
        """The name of a folder that is not there."""
        self._count += 1
        return self.scratch / str(self._count)

    def build(self, out: Path) -> None:
        """Build the recipe."""
        build_model(self.recipe, out, max_shard_size="4MB")

    def search(self, out: Path) -> None:
        """Run the search, or go on with it, in this process."""
        run_search(self.config, out, build=False)

    of_build = staticmethod(digests)  # every byte

    @staticmethod
    def of_search(folder: Path) -> object:
        """What is compared of a search: every trial to the last bit, and the winner."""
        return facts(folder)["trials"], (folder / "recipe.yaml").read_bytes()


def search_of(tiny: Path, evaluations: int, seed: int = 0) -> SearchConfig:
    """A small search of the tiny family."""
    settings = {
        "space": "ps",
        "sources": [{"model": str(tiny / "a")}, {"model": str(tiny / "b")}],
        "base": {"model": str(tiny / "base")},
        "optimize": [{"evaluations": evaluations, "population": 6}],
        "fitness": {"task": "likelihood", "separator": " "},
        "data": {
            split: {"jsonl": str(tiny / f"{split}.jsonl")}
            for split in ("search", "validation", "test")
        },
        "compare": {"finalists": 2},
        "compute": {"seed": seed},
    }
    return validate(SearchConfig, settings, SearchError)


def start(work: Callable[[], Any], log: Path, before: Callable[[], Any] = lambda: None) -> int:
    """Do something in a child of this process, all of whose output goes to a file; returns its
    id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    status = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        before()
        work()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def ended(pid: int) -> int:
    """The status of a child once it has ended; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def command(*arguments: object) -> Callable[[], None]:
    """The command line with some arguments."""

    def call() -> None:
        from hf_evomerge.cli import app

        sys.argv = ["hf-evomerge", *map(str, arguments)]
        app()

    return call


def void(_: object) -> None:
    """Nothing of what was returned."""


@contextlib.contextmanager
def quiet():
    """Nothing on standard error meanwhile: progress bars of libraries."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
