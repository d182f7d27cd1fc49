"""Repository on the Hub: small files at once, the headers of its weights by range, the weights when
they are needed.

A checkpoint is checked from its config and headers before gigabytes are fetched. Pickles are never
fetched, and code with consent only. What the cache has is used as it is, also without a network.
What is fetched is compared with the Hub's sha256, which the client does not do.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import HubError, SourceError, one_line
from ..recipes.names import is_folder, looked_in, named_folder
from .client import T, ask
from .hashes import file_sha256
from .headers import StoredTensor
from .model_folder import MODULES

SMALL_FILES = ["*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken"]
IGNORED_FILES = ["*/*.json", "*/*.txt", "*/*.model"]


def find_folder(
    name: str, revision: str | None = None, *, code: bool = False
) -> tuple[Path, Repository | None]:
    """The folder that a name means, and the repository behind it where it is on the Hub; raises
    `SourceError`."""
    folder = named_folder(name)
    if os.path.isdir(folder):  # Path.is_dir raises where a name is too long
        if revision is not None:
            raise SourceError(
                f"{name}: a folder has no revision (found {revision!r}); leave it out"
            )
        return folder, None
    if os.path.isfile(folder):
        raise SourceError(f"{name}: a file; give the folder that holds the config and the weights")
    repository = Repository(name, revision, code=code)
    return repository.folder, repository


class Repository:
    """A repository at one commit.

    Args:
        name: Its id on the Hub.
        revision: Branch, tag or commit; the default branch where absent.
        code: Whether its Python files are fetched too.

    Raises:
        SourceError: There is no such repository, or neither the Hub nor the cache has it.
    """

    def __init__(self, name: str, revision: str | None = None, *, code: bool = False) -> None:
        if is_folder(name) or any(c.isspace() for c in name):
            raise SourceError(
                f"{name}: no such folder{looked_in(name)}; give a folder that exists or the "
                "id of a repository on the Hub"
            )
        self.name = name
        wanted = [*SMALL_FILES, *(["*.py"] if code else [])]
        self.folder = self._snapshot(revision, wanted, IGNORED_FILES)
        self.commit = self.folder.name
        self.prefix = ""
        if (self.folder / "modules.json").is_file():
            self._snapshot(self.commit, list(MODULES))

    def _snapshot(
        self, revision: str | None, wanted: list[str], ignored: list[str] | None = None
    ) -> Path:
        """Fetch the files of some patterns; return the folder in the cache."""
        from huggingface_hub import snapshot_download

        patterns = {"allow_patterns": wanted, "ignore_patterns": ignored}
        read = partial(snapshot_download, self.name, revision=revision, **patterns)
        return Path(_asked(self.name, read))

    def at(self, part: str) -> Repository:
        """Return one of its folders as a repository."""
        inner = copy.copy(self)
        inner.folder = self.folder / part
        inner.prefix = f"{self.prefix}{part}/"
        return inner

    def fetch_small(self, parts: Sequence[str]) -> None:
        """Fetch the small files of some of its folders."""
        self._snapshot(
            self.commit, [f"{part}/{pattern}" for part in parts for pattern in SMALL_FILES]
        )

    def weight_files(self) -> list[str]:
        """The safetensors files at the top of the repository, without another copy in a format of
        its own."""
        from huggingface_hub import HfApi

        names = _asked(self.name, lambda: HfApi().list_repo_files(self.name, revision=self.commit))
        inside = [name.removeprefix(self.prefix) for name in names if name.startswith(self.prefix)]
        left_out = ("consolidated", "adapter_")
        return [
            name
            for name in inside
            if name.endswith(".safetensors") and "/" not in name and not name.startswith(left_out)
        ]

    def headers(self, files: Sequence[str]) -> dict[str, dict[str, StoredTensor]]:
        """The tensors of each of these files, by reading their headers only; `StoredTensor.file` is
        where it will be."""
        from huggingface_hub import HfApi

        found: dict[str, dict[str, StoredTensor]] = {}
        for file in files:
            read = partial(
                HfApi().parse_safetensors_file_metadata,
                self.name,
                self.prefix + file,
                revision=self.commit,
            )
            found[file] = {}
            for name, info in _asked(
                self.name, read
            ).tensors.items():  # the file itself is checked when it is there
                if not isinstance(info.dtype, str) or not all(
                    type(n) is int and 0 <= n < 1 << 63 for n in info.shape
                ):
                    raise SourceError(
                        f"{self.name}: {file}: the header's entry {one_line(name)} cannot be read"
                    )
                found[file][name] = StoredTensor(info.dtype, tuple(info.shape), self.folder / file)
        return found

    def fetch(self, files: Sequence[str]) -> None:
        """Download those of these files that the cache lacks, and check what came.

        Raises:
            SourceError: A file cannot be had, or is not what the Hub says it is; it is then removed
                from the cache.
        """
        from huggingface_hub import HfApi, hf_hub_download

        missing = [self.prefix + file for file in files if not (self.folder / file).is_file()]
        if not missing:
            return
        entries: list[Any] = _asked(
            self.name, lambda: HfApi().get_paths_info(self.name, missing, revision=self.commit)
        )
        expected = {
            entry.path: entry.lfs.sha256
            for entry in entries
            if getattr(entry, "lfs", None) is not None
        }
        for file in missing:
            read = partial(hf_hub_download, self.name, file, revision=self.commit)
            path = Path(_asked(f"{self.name}: {file}", read))
            # In the Hub's cache a snapshot's file is a link to a blob. Both go: a blob that stays
            # would be linked again.
            if file in expected and (digest := file_sha256(path)) != expected[file]:
                path.resolve().unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                raise SourceError(
                    f"{self.name}: {file}: what was downloaded has sha256 {digest[:12]}..., the "
                    f"Hub says {expected[file][:12]}...; it was removed from the cache, run the "
                    "command again"
                )


def _asked(name: str, call: Callable[[], T]) -> T:
    """Call the client; raises `SourceError` with one line that says what to do."""
    from huggingface_hub import errors

    try:
        return ask(name, call)
    except HubError as error:
        known = error.__context__
        if isinstance(known, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
            if not isinstance(known.__cause__, errors.HfHubHTTPError):  # else it was reached
                raise SourceError(
                    f"{name}: no folder{looked_in(name)}, not in the Hub cache, and the Hub cannot "
                    "be reached; check the name and HF_HUB_OFFLINE"
                ) from error
        elif isinstance(known, errors.GatedRepoError):
            raise SourceError(
                f"{name}: gated; ask for access on its page on the Hub, and log in with `hf auth "
                "login`"
            ) from error
        elif isinstance(known, errors.RepositoryNotFoundError):
            raise SourceError(
                f"{name}: no folder{looked_in(name)}, and no such model on the Hub, or it is "
                "private; check the name, or log in with `hf auth login`"
            ) from error
        raise SourceError(str(error)) from error
