"""Rebuilds a published model from its recipe and its sources, and compares the result with what was published, bit for bit.

Compares the weights, ``config.json``, which holds the path, and the code that runs where it is trusted. Says nothing of the
tokenizer and the card.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..building.build import build_model
from ..checkpoints.lora import WEIGHTS_FILE
from ..checkpoints.open import open_files, open_source
from ..checkpoints.pipeline import INDEX
from ..errors import HubError, RecipeError
from ..recipes.names import is_folder
from ..recipes.recipe import RECIPE_FILE, Recipe, SourceRef
from ..recipes.strict_yaml import read_text
from ..search.evaluation.provenance import version_of
from .card import read_json
from .client import ask, default_api
from .compare import TensorDifference, compare_code, compare_configs, compare_tensors, config_files
from .names import hashes, is_on_hub, listing, parents_of, parts_of, weight_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Reproduction:
    """What rebuilding a published model gave.

    Attributes:
        repo_id, commit: The model, and the commit that was compared with.
        files: The sha256 of each weights file that was rebuilt, by its name.
        tensors: Number of tensors compared; 0 where the files were equal as they are.
        differences: The tensors that differ.
        settings: What differs in ``config.json``, one line each.
        code: Which Python files are not those of the package, one line each.
        uncompared: Which Python files could not be compared, one line each.
        versions: What the model was built with, where that is not what it was rebuilt with: ``{library: (then, now)}``.
    """

    repo_id: str
    commit: str
    files: dict[str, str]
    tensors: int
    differences: tuple[TensorDifference, ...]
    settings: tuple[str, ...]
    versions: dict[str, tuple[str, str]]
    code: tuple[str, ...] = ()
    uncompared: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether every bit is the same that was compared."""
        return not self.differences and not self.settings and not self.code

    def __str__(self) -> str:
        """The report, for people."""
        where = f"{self.repo_id} at {self.commit[:12]}"
        if self.same:
            how = "every weights file" if self.tensors == 0 else f"every one of {self.tensors} tensors, in other files"
            lines = [f"{where}: the same bits, {how}", *(f"  {sha}  {name}" for name, sha in self.files.items())]
            return _printable([*lines, *(f"CODE NOT COMPARED: {line}" for line in self.uncompared)])
        lines = [f"{where}: {len(self.differences)} of {self.tensors} tensors differ"] if self.differences else []
        for difference in self.differences[:20]:
            largest = "" if difference.largest is None else f", by at most {difference.largest:.3g}"
            lines.append(f"  {difference.name}: {difference.what}{largest}")
        if len(self.differences) > 20:
            lines.append(f"  ... and {len(self.differences) - 20} more")
        if self.settings:
            lines.append(f"{where}: config.json is not what the recipe gives")
            lines += [f"  {setting}" for setting in self.settings]
        lines += [f"CODE DIFFERS: {line}" for line in self.code]
        lines += [f"CODE NOT COMPARED: {line}" for line in self.uncompared]
        lines += [f"  built with {name} {then}, rebuilt with {now}" for name, (then, now) in self.versions.items()]
        return _printable(lines)


def _printable(lines: Sequence[str]) -> str:
    """Lines that are not all ours."""
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def reproduce(
    repo_id: str,
    *,
    revision: str | None = None,
    out: str | os.PathLike[str] | None = None,
    api: HfApi | None = None,
    progress: bool = False,
    trust_remote_code: bool = False,
) -> Reproduction:
    """Rebuild a published model from its recipe, and compare the weights with those on the Hub.

    Args:
        repo_id: The model.
        revision: Its branch, tag or commit.
        out: Where to leave the rebuilt model; it is thrown away by default.
        api: The client.
        progress: Whether to show progress bars.
        trust_remote_code: Whether Python files that come with the sources may be run to read their configs. Those of the
            published model are compared, and never run.

    Raises:
        HubError: The model has no recipe, a source was not published, or a downloaded file is not what the Hub says it is.
        SourceError: A source cannot be read.

    Example:
        >>> reproduce("me/my-merge").same  # doctest: +SKIP
        True
    """
    api = api or default_api()
    commit, recipe = _published(api, repo_id, revision)
    _check_published(api, repo_id, commit, recipe)
    assert recipe.built is not None  # _published has refused it otherwise
    whole = WEIGHTS_FILE not in recipe.built.sha256
    for ref in recipe.refs:
        verify_source(ref, api, progress=progress, trust_remote_code=trust_remote_code, whole=whole)
    with TemporaryDirectory(prefix="evomerge-reproduce-") as scratch:
        folder = Path(out) if out is not None else Path(scratch) / "model"
        again = recipe.model_copy(update={"built": None})
        built = build_model(again, folder, progress=progress, trust_remote_code=trust_remote_code, whole=whole)
        files = hashes(built, weight_files(built))
        count, differences = (0, []) if files == recipe.built.sha256 else _compare(built, repo_id, commit)
        versions = _other_versions(recipe)
        settings = []
        for name in config_files(built):
            settings += compare_configs(built / name, _download(api, repo_id, name, commit), versions)
        differ, unknown = _compare_code(api, repo_id, commit, built=built, versions=versions)
    return Reproduction(
        repo_id, commit, files, count, tuple(differences), tuple(settings), versions, tuple(differ), tuple(unknown)
    )


def verify_source(
    ref: SourceRef, api: HfApi, *, progress: bool = False, trust_remote_code: bool = False, whole: bool = True
) -> None:
    """Download a source and its adapter, or the adapter alone, and refuse them where a weights file is not what the Hub says.

    What was downloaded before is compared as well: a disk may fail, and a cache may be shared.

    Raises:
        HubError: A file's sha256 is another.
        SourceError: It cannot be downloaded.
    """
    source = open_source(ref, trust_remote_code=trust_remote_code)
    if whole:
        source.download(progress=progress)
    elif source.adapter is not None:
        source.adapter.download(progress=progress)
    folders = [source.folder, *([source.adapter.folder] if source.adapter is not None else [])]
    for part, folder in zip(parts_of(ref), folders, strict=True):
        if part.gguf is not None:
            continue  # compared with the recipe's own sha256 when it was opened
        expected = _hub_sha256(api, part)
        inside = "*/*.safetensors" if source.entries and part.model == source.ref.model else "*.safetensors"
        for name, sha in hashes(folder, sorted(folder.glob(inside))).items():
            if name in expected and sha != expected[name]:
                raise HubError(
                    f"{part.model}: {folder / name} is not what the Hub holds (its sha256 is another); remove it, and run this "
                    "again"
                )


def _published(api: HfApi, repo_id: str, revision: str | None) -> tuple[str, Recipe]:
    """The commit and the recipe of a model that can be rebuilt."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    commit = ask(f"{repo_id}: cannot be read", lambda: str(api.model_info(repo_id, revision=revision).sha))
    try:
        recipe = Recipe.from_yaml(read_text(_download(api, repo_id, RECIPE_FILE, commit), HubError))
    except HubError as error:
        if not isinstance(error.__cause__, RemoteEntryNotFoundError):
            raise
        raise HubError(f"{repo_id}: holds no {RECIPE_FILE}, so there is nothing to rebuild it from") from error
    except RecipeError as error:
        raise HubError(f"{repo_id}: {RECIPE_FILE}: {error}") from error
    missing = [ref.model for ref in parents_of(recipe) if not is_on_hub(ref)]
    if missing:
        raise HubError(
            f"{repo_id}: only its author can rebuild it: {listing(list(dict.fromkeys(missing)))} cannot be had from the Hub"
        )
    if folder := next((part.model for part in parents_of(recipe) if is_folder(part.model)), None):
        raise HubError(f"{repo_id}: {folder!r} in its {RECIPE_FILE} is a folder on this machine, or would be one; not read")
    if recipe.built is None:
        raise HubError(f"{repo_id}: its {RECIPE_FILE} does not say what it gave; build it with `hf-evomerge merge`")
    return commit, recipe


def _hub_sha256(api: HfApi, ref: SourceRef) -> dict[str, str]:
    """The sha256 of each large file, as the Hub knows it."""
    what = f"{ref.model}: cannot be read"
    info = ask(what, lambda: api.model_info(ref.model, revision=ref.revision, files_metadata=True))
    return {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs is not None}


def _check_published(api: HfApi, repo_id: str, commit: str, recipe: Recipe) -> None:
    """Refuse weights that the recipe does not tell of: transformers might load them in place of those that it does."""
    told = recipe.built.sha256 if recipe.built is not None else {}
    there = _hub_sha256(api, SourceRef(model=repo_id, revision=commit))
    for name, sha in told.items():
        if there.get(name) != sha:
            raise HubError(
                f"{repo_id}: {name} is not the file that its {RECIPE_FILE} tells of; it was changed after it was pushed"
            )
    names = ask(f"{repo_id}: cannot be read", lambda: api.list_repo_files(repo_id, revision=commit))
    deep = 1 if INDEX in names else 0  # of a pipeline what is in its components' folders
    loadable = [name for name in names if name.endswith(".safetensors") and name.count("/") <= deep]
    for index in (name for name in names if name.endswith(".safetensors.index.json") and name.count("/") <= deep):
        weights = read_json(_download(api, repo_id, index, commit)).get("weight_map")
        place = index.rpartition("/")
        loadable += ["".join(place[:2]) + str(name) for name in weights.values()] if isinstance(weights, dict) else []
    if extra := [name for name in dict.fromkeys(loadable) if name not in told]:
        raise HubError(
            f"{repo_id}: {extra[0]} is not in its {RECIPE_FILE}, and may be loaded in place of the files that are; it was "
            "added after the model was pushed"
        )


def _download(api: HfApi, repo_id: str, name: str, commit: str) -> Path:
    """One small file of the published model."""
    what = f"{repo_id}: {name} cannot be downloaded"
    return Path(ask(what, lambda: api.hf_hub_download(repo_id, name, revision=commit)))


def _compare(built: Path, repo_id: str, commit: str) -> tuple[int, list[TensorDifference]]:
    """Tensor by tensor: how the rebuilt model differs from the published one."""
    here = open_files(SourceRef(model=str(built)))
    return compare_tensors(here, open_files(SourceRef(model=repo_id, revision=commit)))


def _compare_code(
    api: HfApi, repo_id: str, commit: str, *, built: Path, versions: Mapping[str, tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """See `compare_code`. A tokenizer or a processor may bring code of its own."""
    names = ask(f"{repo_id}: cannot be read", lambda: api.list_repo_files(repo_id, revision=commit))
    published = {name: _download(api, repo_id, name, commit) for name in names if name.endswith(".py") and "/" not in name}
    differ, unknown = compare_code(built, published, versions)
    for name in ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        if name in names and "auto_map" in read_json(_download(api, repo_id, name, commit)):
            unknown.append(f"{name} names code of its own; read it before you load the model with trust_remote_code")
    return differ, unknown


def _other_versions(recipe: Recipe) -> dict[str, tuple[str, str]]:
    built = recipe.built.versions if recipe.built else {}
    return {name: (then, now) for name, then in built.items() if (now := version_of(name)) != then}
