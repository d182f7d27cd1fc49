"""Names of a recipe's sources once it is published: by repository and commit, so that anybody gets
the same bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.client import ask, large_files, repo_info
from ..checkpoints.hashes import file_sha256
from ..checkpoints.lora import PICTURE_FILE, WEIGHTS_FILE
from ..checkpoints.open import open_files
from ..errors import HubError
from ..recipes.names import is_folder, named_folder
from ..recipes.recipe import SourceRef

if TYPE_CHECKING:
    from huggingface_hub import HfApi


# A recipe on this machine may name a branch, or a folder. A published one must give a stranger the
# same bits next year, so every reference becomes (repository, commit):
#   a repository at a commit      stays
#   a repository, or at a branch  is pinned to the commit that the branch has now
#   a folder that was published   is compared, file by file (sha256), with the head of its
#                                 repository, and takes that commit
#   any other folder              loses its path and keeps its name, which nobody can download
# An adapter is pinned apart from its base: each has its own repository and license. Answers are
# kept, so that all files of one push name one commit though the branch may move meanwhile.
class PublicNames:
    """Names sources for strangers. Callable: ``names(ref)`` is the published reference.

    `published` are the repositories where local folders were published, by folder. What is there
    must be what is in the folder. A repository without a commit is pinned to what it holds now.
    Without a client, names are not looked up and no commit is added.

    Raises:
        HubError: A folder is not there; a repository cannot be read, or does not hold the folder's
            weights.
    """

    def __init__(self, api: HfApi | None, published: Mapping[str, str] | None = None) -> None:
        self._api = api
        self._published = {
            named_folder(str(folder)).resolve(): repo_id
            for folder, repo_id in (published or {}).items()
        }
        for folder in self._published:
            if not folder.is_dir():
                raise HubError(f"--published: {folder} is no folder; give a source's folder")
        self._resolved = cache(self._resolve)

    def __call__(self, ref: SourceRef) -> SourceRef:
        """The published reference."""
        return self._resolved(ref)

    def _resolve(self, ref: SourceRef) -> SourceRef:
        model, *adapter = map(self._pin, ref.parts)
        found = {"model": model.model, "revision": model.revision}
        for part in adapter:
            found.update(adapter=part.model, adapter_revision=part.revision)
        return ref.model_copy(update=found)

    def _pin(self, ref: SourceRef) -> SourceRef:
        """A checkpoint or an adapter by itself, by repository and commit."""
        from huggingface_hub.file_download import REGEX_COMMIT_HASH

        api = self._api
        if is_folder(ref.model):
            folder = named_folder(ref.model)
            repo_id = self._published.get(folder.resolve())
            if repo_id is None:
                return ref.hidden()
            return SourceRef(model=repo_id) if api is None else _same_weights(folder, repo_id, api)
        if api is None or (REGEX_COMMIT_HASH.fullmatch(ref.revision or "") and "/" in ref.model):
            return ref
        what = f"{ref.model}: cannot be pinned to a commit"
        info = ask(
            what, lambda: api.model_info(ref.model, revision=ref.revision)
        )  # `gpt2` gets its slash
        return ref.model_copy(update={"model": info.id, "revision": str(info.sha)})


def _same_weights(folder: Path, repo_id: str, api: HfApi) -> SourceRef:
    """Find the head of a repository; raises `HubError` unless its weights are the folder's."""
    info = repo_info(api, repo_id)
    there = large_files(info)
    adapters = [folder / name for name in (WEIGHTS_FILE, PICTURE_FILE) if (folder / name).is_file()]
    for name, sha in hashes(folder, adapters or weight_files(folder)).items():
        if there.get(name) != sha:
            raise HubError(
                f"{repo_id}: {name} there is not the one in {folder}; push the folder "
                "there, or leave it out"
            )
    return SourceRef(model=repo_id, revision=str(info.sha))


def weight_files(folder: Path) -> Sequence[Path]:
    """The safetensors files of a model folder, by name; raises `SourceError` where there are none
    or one is missing."""
    source = open_files(SourceRef(model=str(folder)))
    return sorted(dict.fromkeys(info.file for info in source.stored.values()))


def hashes(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """The sha256 of files, by their names in a folder."""
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}
