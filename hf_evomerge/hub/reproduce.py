"""Rebuilds a published model from its recipe and its sources, and compares the result with what was published, bit for bit.

Compares the weights and ``config.json``, which holds the path. Says nothing of tokenizer, code and card.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..building.build import build_model
from ..checkpoints.source import Source
from ..errors import HubError, one_line
from ..recipes.recipe import RECIPE_FILE, Recipe, SourceRef
from .card import read_json
from .client import ask, default_api
from .commit import file_sha256
from .names import is_on_hub, listing, parents_of, parts_of, weight_files
from .record import is_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# How the sources are called, which the recipe says, and who wrote the file.
_UNCOMPARED = ("sources", "transformers_version", "_name_or_path")


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that came out otherwise.

    Attributes:
        name: Its name.
        what: How it differs, in words.
        largest: Largest absolute difference; None where the two cannot be subtracted.
    """

    name: str
    what: str
    largest: float | None = None


@dataclass(frozen=True)
class Reproduction:
    """What rebuilding a published model gave.

    Attributes:
        repo_id, commit: The model, and the commit that was compared with.
        files: The sha256 of each weights file that was rebuilt, by its name.
        tensors: Number of tensors compared; 0 where the files were equal as they are.
        differences: The tensors that differ.
        settings: What differs in ``config.json``, one line each.
        versions: What the model was built with, where that is not what it was rebuilt with: ``{library: (then, now)}``.
    """

    repo_id: str
    commit: str
    files: dict[str, str]
    tensors: int
    differences: tuple[TensorDifference, ...]
    settings: tuple[str, ...]
    versions: dict[str, tuple[str, str]]

    @property
    def same(self) -> bool:
        """Whether every bit is the same."""
        return not self.differences and not self.settings

    def __str__(self) -> str:
        """The report, for people."""
        where = f"{self.repo_id} at {self.commit[:12]}"
        if self.same:
            how = "every weights file" if self.tensors == 0 else f"every one of {self.tensors} tensors, in other files"
            return "\n".join([f"{where}: the same bits, {how}", *(f"  {sha}  {name}" for name, sha in self.files.items())])
        lines = [f"{where}: {len(self.differences)} of {self.tensors} tensors differ"] if self.differences else []
        for difference in self.differences[:20]:
            largest = "" if difference.largest is None else f", by at most {difference.largest:.3g}"
            lines.append(f"  {difference.name}: {difference.what}{largest}")
        if len(self.differences) > 20:
            lines.append(f"  ... and {len(self.differences) - 20} more")
        if self.settings:
            lines.append(f"{where}: config.json is not what the recipe gives")
            lines += [f"  {setting}" for setting in self.settings]
        lines += [f"  built with {name} {then}, rebuilt with {now}" for name, (then, now) in self.versions.items()]
        return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)  # not all of it is ours


def reproduce(
    repo_id: str,
    *,
    revision: str | None = None,
    out: str | os.PathLike[str] | None = None,
    api: HfApi | None = None,
    progress: bool = False,
) -> Reproduction:
    """Rebuild a published model from its recipe, and compare the weights with those on the Hub.

    Args:
        repo_id: The model.
        revision: Its branch, tag or commit.
        out: Where to leave the rebuilt model; it is thrown away by default.
        api: The client.
        progress: Whether to show progress bars.

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
    for ref in [*recipe.sources, *([recipe.base] if recipe.base is not None else [])]:
        verify_source(ref, api, progress=progress)
    with TemporaryDirectory(prefix="evomerge-reproduce-") as scratch:
        folder = Path(out) if out is not None else Path(scratch) / "model"
        built = build_model(recipe.model_copy(update={"built": None}), folder, progress=progress)
        files = {file.name: file_sha256(file) for file in weight_files(built)}
        count, differences = (0, []) if files == recipe.built.sha256 else _compare(Source(built), repo_id, commit)
        versions = _other_versions(recipe)
        settings = _compare_configs(built, _download(api, repo_id, "config.json", commit), versions)
    return Reproduction(repo_id, commit, files, count, tuple(differences), tuple(settings), versions)


def verify_source(ref: SourceRef, api: HfApi, *, progress: bool = False) -> None:
    """Download a source and its adapter, and refuse them where a weights file is not what the Hub says.

    What was downloaded before is compared as well: a disk may fail, and a cache may be shared.

    Raises:
        HubError: A file's sha256 is another.
        SourceError: It cannot be downloaded.
    """
    source = Source.open(ref)
    source.download(progress=progress)
    folders = [source.folder, *([source.adapter.folder] if source.adapter is not None else [])]
    for part, folder in zip(parts_of(ref), folders, strict=True):
        expected = _hub_sha256(api, part)
        for file in sorted(folder.glob("*.safetensors")):
            if file.name in expected and file_sha256(file) != expected[file.name]:
                raise HubError(
                    f"{part.model}: {file} is not what the Hub holds (its sha256 is another); remove it, and run this again"
                )


def _published(api: HfApi, repo_id: str, revision: str | None) -> tuple[str, Recipe]:
    """The commit and the recipe of a model that can be rebuilt."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    commit = ask(f"{repo_id}: cannot be read", lambda: str(api.model_info(repo_id, revision=revision).sha))
    try:
        recipe = Recipe.load(_download(api, repo_id, RECIPE_FILE, commit))
    except HubError as error:
        if not isinstance(error.__cause__, RemoteEntryNotFoundError):
            raise
        raise HubError(f"{repo_id}: holds no {RECIPE_FILE}, so there is nothing to rebuild it from") from error
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
    loadable = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    for index in (name for name in names if name.endswith(".safetensors.index.json") and "/" not in name):
        weights = read_json(_download(api, repo_id, index, commit)).get("weight_map")
        loadable += [str(name) for name in weights.values()] if isinstance(weights, dict) else []
    if extra := [name for name in dict.fromkeys(loadable) if name not in told]:
        raise HubError(
            f"{repo_id}: {extra[0]} is not in its {RECIPE_FILE}, and may be loaded in place of the files that are; it was "
            "added after the model was pushed"
        )


def _download(api: HfApi, repo_id: str, name: str, commit: str) -> Path:
    """One small file of the published model."""
    what = f"{repo_id}: {name} cannot be downloaded"
    return Path(ask(what, lambda: api.hf_hub_download(repo_id, name, revision=commit)))


def _compare_configs(built: Path, published: Path, versions: Mapping[str, tuple[str, str]]) -> list[str]:
    """What ``config.json`` says otherwise. Another transformers writes more keys or fewer; that is no difference."""
    pairs = [_flat(read_json(file)) for file in (built / "config.json", published)]
    here, there = ({key: value for key, value in pair.items() if key.rpartition(".")[2] not in _UNCOMPARED} for pair in pairs)
    both = here.keys() & there.keys()
    keys = [key for key in {**here, **there} if key in both or "transformers" not in versions]
    return [
        f"{key}: {_json(there.get(key))} is published, the recipe gives {_json(here.get(key))}"
        for key in keys
        if here.get(key) != there.get(key)
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value})
    return found


def _json(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 80)


def _compare(built: Source, repo_id: str, commit: str) -> tuple[int, list[TensorDifference]]:
    """Tensor by tensor: how the rebuilt model differs from the published one."""
    published = Source.open(SourceRef(model=repo_id, revision=commit))
    published.download(progress=False)
    names = list(dict.fromkeys([*published.tensors, *built.tensors]))
    found = [_difference(name, built, published) for name in names]
    return len(names), [difference for difference in found if difference is not None]


def _difference(name: str, built: Source, published: Source) -> TensorDifference | None:
    import torch

    here, there = built.tensors.get(name), published.tensors.get(name)
    if here is None or there is None:
        return TensorDifference(name, "only in the published model" if here is None else "only in the rebuilt model")
    if (here.dtype, here.shape) != (there.dtype, there.shape):
        return TensorDifference(name, f"{there} is published, {here} was rebuilt")
    a, b = built.read(name), published.read(name)
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8).reshape(tensor.numel(), -1) for tensor in (a, b)]
    count = int((bits[0] != bits[1]).any(dim=1).sum()) if a.numel() else 0
    if count == 0:
        return None
    distance = (a.double() - b.double()).abs()
    return TensorDifference(name, f"{count} of {a.numel()} numbers differ", float(distance.max()))


def _other_versions(recipe: Recipe) -> dict[str, tuple[str, str]]:
    from importlib.metadata import PackageNotFoundError, version

    changed = {}
    for name, then in (recipe.built.versions if recipe.built else {}).items():
        try:
            now = version(name)
        except PackageNotFoundError:
            now = "none"
        if now != then:
            changed[name] = (then, now)
    return changed
