"""Rebuilds a published model from its recipe and its sources, and compares the result with what was
published, bit for bit.

Compares the weights, ``config.json``, which holds the path, and the code that runs where it is
trusted. Says nothing of the tokenizer and the card.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..building.build import build_model
from ..checkpoints.client import ask, default_api, large_files, repo_info
from ..checkpoints.lora import PICTURE_FILE, WEIGHTS_FILE
from ..checkpoints.model_folder import INDEX
from ..checkpoints.open import open_files, open_source
from ..errors import HubError, RecipeError
from ..pictures.scene import listed
from ..recipes.names import is_folder
from ..recipes.recipe import RECIPE_FILE, Recipe, SourceRef
from ..recipes.strict_yaml import read_text
from .card import read_json
from .compare import TensorDifference, compare_code, compare_configs, compare_tensors, config_files
from .names import hashes, weight_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Reproduction:
    """Result of rebuilding a published model.

    Attributes:
        repo_id, commit: The model, and the commit that was compared with.
        files: The sha256 of each weights file that was rebuilt, by its name.
        tensors: Number of tensors compared; 0 where the files were equal as they are.
        differences: The tensors that differ.
        settings: Differences in ``config.json``, one line each.
        code: Python files that are not those of the package, one line each.
        uncompared: Python files that could not be compared, one line each.
        versions: Versions that it was built with and rebuilt with, where they differ: ``{library:
            (then, now)}``.
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
        """True where every bit is the same that was compared."""
        return not self.differences and not self.settings and not self.code

    def __str__(self) -> str:
        """The report, for people."""
        where = f"{self.repo_id} at {self.commit[:12]}"
        if self.same:
            how = (
                "every weights file"
                if self.tensors == 0
                else f"every one of {self.tensors} tensors, in other files"
            )
            lines = [f"{where}: the same bits, {how}"]
            lines += [f"  {sha}  {name}" for name, sha in self.files.items()]
        elif self.differences:
            lines = [f"{where}: {len(self.differences)} of {self.tensors} tensors differ"]
        else:
            lines = []
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
        versions = {} if self.same else self.versions
        lines += [
            f"  built with {name} {then}, rebuilt with {now}"
            for name, (then, now) in versions.items()
        ]
        shown = []
        for line in lines:  # not all of it ours
            shown.append("".join(c if c.isprintable() else "?" for c in line))
        return "\n".join(shown)


# What is trusted and what is checked. The recipe names parents by commit and says which weights
# files it gave, by sha256. (1) The repository holds these files and no other that could be loaded
# in their place. (2) Each parent's files are what the Hub says they are. (3) The model is built
# anew. Equal hashes end the comparison; otherwise every tensor is compared bit by bit, since
# another version may order a file differently. (4) The config and the Python files are those that
# the recipe gives. Nothing of the published model is run.
def reproduce(
    repo_id: str,
    *,
    revision: str | None = None,
    out: str | Path | None = None,
    api: HfApi | None = None,
    trust_remote_code: bool = False,
) -> Reproduction:
    """Rebuild a published model from its recipe, and compare the weights with those on the Hub.

    Args:
        repo_id: The model.
        revision: Its branch, tag or commit.
        out: Where to leave the rebuilt model; it is thrown away by default.
        api: The client.
        trust_remote_code: Whether Python files that come with the sources may be run to read their
            configs. Those of the published model are compared, and never run.

    Raises:
        HubError: The model has no recipe, a source was not published, or a downloaded file is not
            what the Hub says it is.
        SourceError: A source cannot be read.

    Example:
        >>> reproduce("me/my-merge").same  # doctest: +SKIP
        True
    """
    api = api or default_api()
    published = _Published(api, repo_id, revision)
    recipe, given = published.recipe()
    published.check(given)
    whole = not {WEIGHTS_FILE, PICTURE_FILE} & given.keys()
    for ref in recipe.refs:
        verify_source(ref, api, trust_remote_code=trust_remote_code, whole=whole)
    with TemporaryDirectory(prefix="evomerge-reproduce-") as scratch:
        folder = Path(out) if out is not None else Path(scratch) / "model"
        again = recipe.model_copy(update={"built": None})
        built = build_model(again, folder, trust_remote_code=trust_remote_code, whole=whole)
        files = hashes(built, weight_files(built))
        there = SourceRef(model=repo_id, revision=published.commit)
        both = (open_files(ref) for ref in (SourceRef(model=str(built)), there))
        count, differences = (0, []) if files == given else compare_tensors(*both)
        versions = _other_versions(recipe)
        settings = []
        for name in config_files(built):
            settings += compare_configs(built / name, published.download(name), versions)
        code = published.compare_code(built, versions)
    return Reproduction(
        repo_id,
        published.commit,
        files,
        count,
        tuple(differences),
        tuple(settings),
        versions,
        *map(tuple, code),
    )


def verify_source(
    ref: SourceRef, api: HfApi, *, trust_remote_code: bool = False, whole: bool = True
) -> None:
    """Download a source and its adapter, or the adapter alone, and refuse them where a weights file
    is not what the Hub says.

    What was downloaded before is compared as well: a disk may fail, and a cache may be shared.
    """
    source = open_source(ref, trust_remote_code=trust_remote_code)
    if whole:
        source.download()
    elif source.adapter is not None:
        source.adapter.download()
    folders = [source.folder, *([source.adapter.folder] if source.adapter is not None else [])]
    for part, folder in zip(ref.parts, folders, strict=True):
        expected = large_files(repo_info(api, part.model, part.revision))
        inside = (
            "*/*.safetensors"
            if source.entries and part.model == source.ref.model
            else "*.safetensors"
        )
        for name, sha in hashes(folder, sorted(folder.glob(inside))).items():
            if name in expected and sha != expected[name]:
                what = f"{folder / name} is not what the Hub holds (its sha256 is another)"
                raise HubError(f"{part.model}: {what}; remove it, and run this again")


class _Published:
    """A published model at a commit: the names of its files, and the sha256 of each large one, as
    the Hub knows it."""

    def __init__(self, api: HfApi, repo_id: str, revision: str | None) -> None:
        self.api = api
        self.repo_id = repo_id
        info = repo_info(api, repo_id, revision)
        self.commit = str(info.sha)
        self.sha256 = large_files(info)
        self.names = [file.rfilename for file in info.siblings or []]

    def download(self, name: str) -> Path:
        """Download one small file."""
        call = partial(self.api.hf_hub_download, self.repo_id, name, revision=self.commit)
        return Path(ask(f"{self.repo_id}: {name} cannot be downloaded", call))

    def recipe(self) -> tuple[Recipe, dict[str, str]]:
        """The recipe, and the sha256 of each weights file that it gave; refused where nobody else
        can rebuild the model."""
        if RECIPE_FILE not in self.names:
            raise HubError(
                f"{self.repo_id}: holds no {RECIPE_FILE}, so there is nothing to rebuild it from"
            )
        try:
            recipe = Recipe.from_yaml(
                read_text(self.download(RECIPE_FILE), HubError)
            )  # which looks for no run's checkpoints
        except RecipeError as error:
            raise HubError(f"{self.repo_id}: {RECIPE_FILE}: {error}") from error
        parents = recipe.parents
        if missing := list(dict.fromkeys(ref.model for ref in parents if not ref.is_on_hub)):
            raise HubError(
                f"{self.repo_id}: only its author can rebuild it: {listed(missing)} cannot "
                "be had from the Hub"
            )
        if folder := next((part.model for part in parents if is_folder(part.model)), None):
            what = f"{folder!r} in its {RECIPE_FILE} is a folder on this machine, or would be one"
            raise HubError(f"{self.repo_id}: {what}; not read")
        if recipe.built is None:
            said = f"its {RECIPE_FILE} does not say what it gave"
            raise HubError(f"{self.repo_id}: {said}; build it with `hf-evomerge merge`")
        return recipe, recipe.built.sha256

    def check(self, told: Mapping[str, str]) -> None:
        """Refuse weights that the recipe does not tell of: transformers might load them in place of
        those that it does."""
        for name, sha in told.items():
            if self.sha256.get(name) != sha:
                changed = (
                    f"is not the file that its {RECIPE_FILE} tells of; it was changed after it "
                    "was pushed"
                )
                raise HubError(f"{self.repo_id}: {name} {changed}")
        deep = 1 if INDEX in self.names else 0  # then also in the components' folders
        there = [name for name in self.names if name.count("/") <= deep]
        loadable = [name for name in there if name.endswith(".safetensors")]
        for index in (name for name in there if name.endswith(".safetensors.index.json")):
            weights = read_json(self.download(index)).get("weight_map")
            place = "".join(index.rpartition("/")[:2])
            if isinstance(weights, dict):
                loadable += [f"{place}{name}" for name in weights.values()]
        if extra := [name for name in dict.fromkeys(loadable) if name not in told]:
            added = (
                "may be loaded in place of the files that are; it was added after the model was "
                "pushed"
            )
            raise HubError(f"{self.repo_id}: {extra[0]} is not in its {RECIPE_FILE}, and {added}")

    def compare_code(
        self, built: Path, versions: Mapping[str, tuple[str, str]]
    ) -> tuple[list[str], list[str]]:
        """Apply `compare_code`. A tokenizer or a processor may bring code of its own."""
        published = {
            name: self.download(name)
            for name in self.names
            if name.endswith(".py") and "/" not in name
        }
        differ, unknown = compare_code(built, published, versions)
        for name in ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
            if name in self.names and "auto_map" in read_json(self.download(name)):
                unknown.append(
                    f"{name} names code of its own; read it before you load the model with "
                    "trust_remote_code"
                )
        return differ, unknown


def _other_versions(recipe: Recipe) -> dict[str, tuple[str, str]]:
    from importlib.metadata import PackageNotFoundError, version

    pairs = {}
    for name, then in (recipe.built.versions if recipe.built else {}).items():
        pairs[name] = (then, "none")
        with suppress(PackageNotFoundError):
            pairs[name] = (then, version(name))
    return {name: (then, now) for name, (then, now) in pairs.items() if then != now}
