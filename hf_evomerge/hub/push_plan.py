"""Plans what a push sends, and sends nothing: what may be published, under which license, which
files, which card.

What the plan does not list does not leave this machine at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..building.build_record import BUILD_FILE, changed_since, read_build_record
from ..checkpoints.client import T, ask
from ..checkpoints.inside import check_inside
from ..checkpoints.lora import CONFIG_FILE
from ..checkpoints.model_folder import COMPANIONS, INDEX, write_json
from ..checkpoints.open import config_name
from ..checkpoints.replication import KEY as LAYERS
from ..checkpoints.repository import SMALL_FILES
from ..errors import HubError, RecipeError
from ..pictures.scene import listed
from ..recipes.recipe import RECIPE_FILE, Built, Recipe, SourceRef
from ..record import STUDY_JSON
from ..search.study.files import TOGETHER_FOLDER
from .card import CardFacts, check_metadata, read_json, render_card
from .commit import Content, size_of
from .licenses import NOT_ASKED, UNKNOWN, LicenseDecision, decide_license, languages_of, license_of
from .names import PublicNames, hashes, weight_files
from .record import IMAGES_FOLDER, TRIALS_FILE, write_record
from .space import SETTINGS_FILE, check_space, space_files
from .target import ATTRIBUTES, CARD, check_private, find_model, holds, refuse_others
from .trials import check_trials, trials_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_CODE = tuple(
    f"{name}_evo_merged.py" for name in ("blocks", "configuration", "layers", "modeling", "sources")
)
# Weights in another format, which would be those of another model.
_STALE = (
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model*.bin",
    "adapter_model.bin",
    "tf_model.h5",
    "flax_model.msgpack",
)
# What an earlier push may have left and a later one must not: other shards, tokenizer, code and
# record of another winner; and the config of another kind of model, for which this one would be
# taken.
_OURS = (
    "*.safetensors",
    "*.safetensors.index.json",
    CONFIG_FILE,
    INDEX,
    "config.json",
    *COMPANIONS,
    *_CODE,
    RECIPE_FILE,
    STUDY_JSON,
    TRIALS_FILE,
    *_STALE,
    *(
        f"{IMAGES_FOLDER}/{name}.png"
        for name in ("fitness", "front", "path", "weights", "example-*")
    ),
)
_PARTS = tuple(
    f"*/{pattern}" for pattern in ("*.safetensors", *SMALL_FILES, *_STALE)
)  # of a pipeline
_NOTES = (
    INDEX,
    "config.json",
    "scheduler_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_NOTED = (
    "name_or_path",
    "_name_or_path",
    "tokenizer_file",
    "special_tokens_map_file",
    "vocab_file",
    "merges_file",
)


@dataclass(frozen=True)
class PushOptions:
    """Options for publishing a model.

    Attributes:
        private: Make a new repository private. One that exists and is public is refused.
        revision: The branch; made where there is none.
        license: A Hub identifier, in place of what follows from the parents' licenses.
        languages: ISO 639 codes for the card; the parents' where absent, if all state theirs and
            they are four at most.
        published: Repositories of local source folders: ``{folder: repository}``.
        examples: How many problems of the test split to publish with the record.
        about: The sentence on what the model is for, in place of the search file's.
        card: Whether to write the card; otherwise what is there stays.
        space: Whether to make a Space for the model as well.
        trials: Whether to publish the search's trials as a data set as well.
        replace: Whether the repository may hold files that no push has put there. The plan says
            what is replaced and removed.
        trust_remote_code: Whether Python files that come with the sources, or task files of
            lm_eval, may be run.

    Example:
        >>> PushOptions(private=True, license="apache-2.0", languages=["ja"]).private
        True
    """

    private: bool = False
    revision: str | None = None
    license: str | None = None
    languages: Sequence[str] = ()
    published: Mapping[str, str] = field(default_factory=dict)
    examples: int = 0
    about: str | None = None
    card: bool = True
    space: bool = False
    trials: bool = False
    replace: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class PushPlan:
    """Plan of a push to a repository; ``print`` it to read it.

    Attributes:
        files, sizes: Content of each file, and its bytes. Files that were made for the push are
            gone when it is over.
        license: What it goes out under.
        warnings: Warnings for a reader before it is public, one line each.
        replaced: Files that are in the repository under the same names.
        removed: Files of an earlier winner, and weights in other formats, that go.
        left: Other files of the repository, which stay.
        parts: The components, of a diffusion pipeline.
        space: Files of the Space that is made with it.
        trials: Content of each file of the data set that is made with it.
    """

    repo_id: str
    files: Mapping[str, Content]
    sizes: Mapping[str, int]
    license: LicenseDecision
    warnings: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    space: tuple[str, ...] = ()
    trials: Mapping[str, Content] = field(default_factory=dict)

    @property
    def changes(self) -> list[str]:
        """Fates of the files in the repository: one line each for those replaced, removed and
        left."""
        fates = {"replaced": self.replaced, "removed": self.removed, "left": self.left}
        return [f"{fate}: {', '.join(names)}" for fate, names in fates.items() if names]

    def __str__(self) -> str:
        total = sum(self.sizes.values()) / 1e6
        lines = [
            f"{self.repo_id}: {len(self.files)} files, {total:.1f} MB, license {self.license.title}"
        ]
        lines += [f"  {size:>14,}  {name}" for name, size in sorted(self.sizes.items())]
        lines += [f"  {change}" for change in self.changes]
        if self.space:
            named = dict.fromkeys(
                f"{name.rpartition('/')[0]}/" if "/" in name else name
                for name in sorted(self.space)
            )
            lines.append(f"Space {self.repo_id}: {len(self.space)} files: {', '.join(named)}")
        if self.trials:
            lines.append(f"data set {self.repo_id}: {', '.join(self.trials)}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


# The plan is the whole of what leaves the machine: names and contents. Nothing is added later, so a
# dry run shows what a push does. The order matters: what may refuse cheaply comes first (names,
# license, what the repository holds), then what reads all weights (hashes), then what
# is written from them (record, recipe, config, card). The card comes last because it is rendered
# from the other files as a stranger will find them.
#
# What becomes of the files of a repository, by name:
#   in the plan                 replaced
#   of an earlier push          removed: old shards would be taken for this model's
#   any other                   left; without --replace they must be none, unless a push filled it
def plan_push(
    folder: str | Path, repo_id: str, options: PushOptions, *, api: HfApi | None, scratch: Path
) -> PushPlan:
    """Make everything that `push_model` sends, in the empty folder `scratch`, and send nothing.

    The plan needs the folder until it is carried out. Without a client it says what can be known
    without the Hub.
    """
    model, search = find_model(Path(folder))
    draws = (model / INDEX).is_file()
    config = config_name(model)
    if options.space:
        settings = read_json(model / config)
        hidden = None
        if settings.get(LAYERS):
            hidden = "an adapter that moves layers, which a Space cannot show beside its base"
        elif not draws and "_class_name" in settings:
            hidden = "a LoRA of a pipeline, which a Space cannot show"
        if hidden is not None:
            raise HubError(
                f"{model}: {hidden}; push it without --space, or merge again with --whole"
            )
    there = [] if api is None else files_there(api, repo_id, options)
    weights = weight_files(model)
    recipe = Recipe.load(model / RECIPE_FILE)
    names = PublicNames(api, options.published)
    parents = recipe.parents
    if model.name == TOGETHER_FOLDER:  # its LoRA is the search's own
        parents = [ref for ref in parents if ref != recipe.sources[-1].parts[-1]]
    license = license_for(parents, names, options, api)
    built = _built(model, weights)
    parts = tuple(file.name for file in sorted(model.iterdir()) if file.is_dir()) if draws else ()
    ours = _by_name(model, weights)
    for pattern in (
        (INDEX, *_PARTS[1:]) if draws else ("*.safetensors.index.json", *COMPANIONS, *_CODE)
    ):
        ours |= _by_name(model, model.glob(pattern))
    for file in ours.values():
        check_inside(
            model, file
        )  # again, now that the weights were read: what a link leads to is not this model's
    _write_without_folders(ours, scratch)
    if search is not None:
        licenses = {
            parent.model: parent.title for parent in license.parents if parent.license != UNKNOWN
        }
        write_record(
            search,
            scratch,
            stage="together" if model.name == TOGETHER_FOLDER else None,
            examples=options.examples,
            publish=names,
            licenses=licenses,
            about=options.about,
            trust_remote_code=options.trust_remote_code,
        )
    elif options.trials:
        raise HubError(f"{model}: was not searched for, so it has no trials; leave out --trials")
    elif options.about:
        raise HubError(
            f"{model}: was not searched for, so no record of it holds a sentence; leave out --about"
        )
    recipe.renamed(names).model_copy(update={"built": built}).save(scratch / RECIPE_FILE)
    if not draws:
        _write_config(model / config, recipe, names, scratch / config)
    elif not (scratch / INDEX).exists():
        shutil.copyfile(model / INDEX, scratch / INDEX)
    facts = CardFacts.of_folder(scratch)
    known = options.card and bool(there)
    if options.space or (known and api and holds(repo_id, "space", SETTINGS_FILE, api)):
        facts = replace(facts, space=repo_id)
    if options.trials or (known and api and search and holds(repo_id, "dataset", TRIALS_FILE, api)):
        facts = replace(facts, trials=repo_id)
    if options.card:
        card = render_card(
            facts, repo_id, license, languages=options.languages or languages_of(license.parents)
        )
        if api is not None:
            check_metadata(card, repo_id, api)
        (scratch / CARD).write_text(card, encoding="utf-8")
    files = ours | _by_name(scratch, scratch.rglob("*"))
    others = [name for name in there if name not in files and name != ATTRIBUTES]
    removed = tuple(name for name in others if is_ours(name, parts))
    sizes = {name: size_of(content) for name, content in files.items()}
    warnings = _warnings(recipe, names, license)
    if options.card and facts.study is not None and not facts.study.settings.about:
        warnings.append(
            'card and Space do not say what the model is for; push with --about "...one '
            'sentence", or write `about` into '
            f"{search}/search.yaml"
        )
    if (row := facts.record.winner) is not None and row.doubt:
        warnings.append(row.doubt)
    if built is None:
        warnings.append(
            f"{model} has no {BUILD_FILE}, so it is not known whether the weights are those "
            "that the recipe gives; build it again"
        )
    space = tuple(space_files(repo_id)) if options.space else ()
    trials: dict[str, Content] = {}
    if options.trials and facts.study is not None:
        card = trials_card(facts.record, repo_id, license)
        trials = {TRIALS_FILE: files[TRIALS_FILE], CARD: card.encode()}
    return PushPlan(
        repo_id,
        files,
        sizes,
        license,
        tuple(warnings),
        replaced=tuple(name for name in there if name in files),
        removed=removed,
        left=tuple(name for name in others if name not in removed),
        parts=parts,
        space=space,
        trials=trials,
    )


def _by_name(folder: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Map the names of files in a folder to the files, in order."""
    return {file.relative_to(folder).as_posix(): file for file in sorted(paths) if file.is_file()}


def license_for(
    parents: Sequence[SourceRef], names: PublicNames, options: PushOptions, api: HfApi | None
) -> LicenseDecision:
    """Decide the license of a merge from the licenses of its parents."""
    found = [license_of(for_license(ref, names), api) for ref in parents]
    if options.license is None and any(parent.note == NOT_ASKED for parent in found):
        return LicenseDecision(UNKNOWN, "Licenses of parents were not looked up.", tuple(found))
    return decide_license(found, options.license)


def for_license(ref: SourceRef, names: PublicNames) -> SourceRef:
    """Return where to read a parent's license: on the Hub, where it is published there."""
    public = names(ref)
    return public if public.is_on_hub else ref


def files_there(api: HfApi, repo_id: str, options: PushOptions) -> list[str]:
    """List what is in the repository already; nothing, where there is none.

    It must hold no files but those of a push, unless they may be replaced.

    Raises:
        HubError: What is there, or the options, do not allow the push.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if options.space:
        check_space(repo_id, api, private=options.private)
    if options.trials:
        check_trials(repo_id, api, private=options.private, replace=options.replace)

    # A branch that does not exist yet is judged by main, from which it will start.
    def at_branch(read: Callable[[str | None], T]) -> T:
        try:
            return read(options.revision)
        except RevisionNotFoundError:  # the branch will start as main is
            return read(None)

    def read() -> tuple[list[str], bool]:
        try:
            if options.private:
                check_private(repo_id, api.model_info(repo_id), "the model", private=True)
            names = at_branch(lambda revision: api.list_repo_files(repo_id, revision=revision))
            may_replace = options.replace or not set(names) - {ATTRIBUTES}
            return names, may_replace or at_branch(partial(_was_pushed, api, repo_id, names))
        except RepositoryNotFoundError:
            return [], True

    names, may_replace = ask(f"{repo_id}: cannot be read", read)
    if not may_replace:
        refuse_others(repo_id, names)
    return names


def _was_pushed(api: HfApi, repo_id: str, names: Sequence[str], revision: str | None) -> bool:
    """Tell whether a push has filled a repository: every push leaves its recipe there."""
    if RECIPE_FILE not in names:
        return False
    try:
        Recipe.load(api.hf_hub_download(repo_id, RECIPE_FILE, revision=revision))
    except RecipeError:  # other programs have files of this name
        return False
    return True


def is_ours(name: str, parts: Sequence[str] = ()) -> bool:
    """Tell if a file in the repository is one that a push would have put there; fnmatch's ``*``
    would reach into folders."""
    patterns = (*_OURS, *(_PARTS if name.partition("/")[0] in parts else ()))
    return any(
        name.count("/") == pattern.count("/") and fnmatch(name, pattern) for pattern in patterns
    )


def _built(model: Path, weights: Sequence[Path]) -> Built | None:
    """Read what the recipe gave when the model was built; None where nobody wrote it down. Refused
    where it was changed."""
    record = read_build_record(model)
    if record is None:
        return None
    if changed := changed_since(model, record):
        what = (
            f"{listed(changed)} {'is' if len(changed) == 1 else 'are'} not what was built from "
            "its recipe; build it again"
        )
        raise HubError(
            f"{model}: {what}, or remove {BUILD_FILE} to publish it without saying where it "
            "comes from"
        )
    return record.model_copy(update={"sha256": hashes(model, weights), "energy": None})


def _write_without_folders(files: Mapping[str, Path], scratch: Path) -> None:
    """Write the JSON files in which older libraries noted where on this machine something came
    from, without it."""
    for name, file in files.items():
        if file.name not in _NOTES:
            continue
        settings = read_json(file)
        kept = {
            key: value
            for key, value in settings.items()
            if key not in _NOTED or not str(value).startswith(("/", "~", "."))
        }
        if kept != settings:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            write_json(scratch / name, kept)


def _write_config(own: Path, recipe: Recipe, names: PublicNames, file: Path) -> None:
    """The model's config, in which a path's sources and the base of an adapter are named as they
    are published."""
    config = read_json(own)
    if (named := config.get("base_model_name_or_path")) is not None:
        base = names(SourceRef(model=named, revision=config.get("revision")))
        if not base.is_on_hub:
            what = "the adapter's base is on this machine only, so nobody could load the adapter"
            hint = (
                f"publish the base, and pass --published {named}=user/name, or merge again with "
                "--whole"
            )
            raise HubError(f"{named}: {what}; {hint}")
        config |= {"base_model_name_or_path": base.model, "revision": base.revision}
    for described, ref in zip(config.get("sources") or [], recipe.sources, strict=False):
        described.pop("revision", None)
        described.update(names(ref).model_dump(exclude_none=True))
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and part.get("_name_or_path"):
            del part["_name_or_path"]
    write_json(file, config)


def _warnings(recipe: Recipe, names: PublicNames, license: LicenseDecision) -> list[str]:
    warnings = []
    if local := list(
        dict.fromkeys(ref.model for ref in map(names, recipe.parents) if not ref.is_on_hub)
    ):
        warnings.append(
            f"{listed(local)} {'is' if len(local) == 1 else 'are'} on this machine only, so "
            "nobody else can rebuild the "
            "model; publish what is missing, and pass --published FOLDER=user/name for each"
        )
    if license.license == "other":
        warnings.append(f"license: {license.reason} The card lists them; --license overrides it")
    if license.chosen:
        terms = ", ".join(
            dict.fromkeys(f"{parent.model} {parent.title}" for parent in license.parents)
        )
        warnings.append(f"license: {license.license} is your choice; the parents' are: {terms}")
    return warnings
