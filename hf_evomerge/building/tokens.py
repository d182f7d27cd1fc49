"""Vocabularies that are matched by token: sources as they would be if all of them had the tokens of
the result.

A source that lacks a token gets a row for it: the default's, else that of the only other one that
has it, else the mean of those that have it. What is merged after that are tensors of one shape, and
nothing else knows of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Origin, Parent, View
from ..checkpoints.compatibility import Tokenizer
from ..checkpoints.headers import StoredTensor
from ..checkpoints.model_folder import write_json
from ..checkpoints.source import Source
from ..errors import SourceError
from ..recipes.layer_groups import classify
from ..recipes.recipe import Recipe, TokenPart

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

_OTHER_FILES = (
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "*.tiktoken",
    "spiece.model",
)


def match_tokens(
    recipe: Recipe, sources: Mapping[int, Parent], base: Parent | None
) -> tuple[Mapping[int, Parent], Parent | None]:
    """The sources and the base with the tokens of the result, where the recipe matches vocabularies
    by token.

    They are left alone where all have the same tokens and as many rows, and nothing else is asked
    for.

    Args:
        recipe: The recipe.
        sources: The sources that it uses, by their numbers; also one that only gives its tokenizer.
        base: Its base.

    Raises:
        SourceError: A tokenizer cannot be read, or does not have a token that the recipe names.
    """
    if recipe.vocabulary is None:
        return sources, base
    part = recipe.tokens or TokenPart()
    parties: dict[int | str, Parent] = {number: sources[number] for number in recipe.merge_sources}
    parties |= {"base": base} if base is not None else {}
    default: int | str | None = part.default
    if default is None and base is not None:
        default = "base"
    owner = recipe.tokenizer_of(sources, base, sources[recipe.merge_sources[0]])
    everyone = [owner, *parties.values()]
    known = {id(source): _tokens(source) for source in everyone}
    tokens = dict(known[id(owner)])
    added: dict[str, Parent] = {}
    # New tokens in the order of the sources, and of each in its own order: dicts keep it, so rows
    # do not depend on hashes.
    for source in parties.values() if recipe.vocabulary == "union" else ():
        added |= {
            token: source
            for token in known[id(source)]
            if token not in tokens and token not in added
        }
    following = max(tokens.values(), default=-1) + 1
    tokens |= {token: following + place for place, token in enumerate(added)}
    rows = max(tokens.values(), default=-1) + 1
    alike = all(
        known[id(source)] == tokens and source.vocab_size == owner.vocab_size for source in everyone
    )
    if alike and not part.rows and part.multiple_of == 1:
        return sources, base
    size = -(-rows // part.multiple_of) * part.multiple_of
    data = _tokenizer_json(owner)
    data = _extended(data, tokens, added, owner) if added else data
    known |= {id(source): _tokens(source) for source in sources.values() if id(source) not in known}
    match = _Match(parties, default, known, tokens, size, part, data, bool(added), _groups(recipe))
    match.check()
    matched = {number: MatchedSource(source, match) for number, source in sources.items()}
    return matched, MatchedSource(base, match) if base is not None else None


def _groups(recipe: Recipe) -> tuple[list[int | str], ...] | None:
    """Whom the embeddings and the head of a stack are merged from, which is the first and the last
    slice; None: all."""
    if recipe.merge is None or recipe.merge.slices is None:
        return None
    groups: list[list[int | str]] = []
    for place in (0, -1):
        runs = recipe.merge.slices[place].runs()
        groups.append(["base", *(run[0][0] for run in runs)])
    return tuple(groups)


@dataclass
# Given: for each source the map from token to row. The result has a map of its own: the owner's
# tokens in the owner's rows, further ones behind them. A table then says, for each row of the
# result, which row of a source it is, or -1. It is made once per source and used for every tensor
# with a row per token.
class _Match:
    """Vocabulary match, shared by its sources.

    Attributes:
        parties: Sources that take part, and the base, by their keys in the recipe.
        default: The key of the one whose row counts first.
        known: The row of each token, by the `id` of the source.
        tokens: The row of each token of the result.
        size: Number of rows of the result.
        part: Tokens with other rows.
        tokenizer: Content of the result's ``tokenizer.json``.
        extended: True where that is more than the owner's.
        groups: The keys of those that the embeddings and the head are merged from; None: all.
    """

    parties: dict[int | str, Parent]
    default: int | str | None
    known: dict[int, dict[str, int]]
    tokens: dict[str, int]
    size: int
    part: TokenPart
    tokenizer: dict[str, Any]
    extended: bool
    groups: tuple[list[int | str], ...] | None

    def check(self) -> None:
        """Raise `SourceError` where a row is named that is not there."""
        for token, row in self.part.rows.items():
            if token not in self.tokens:
                raise SourceError(
                    f"tokens.rows: {token!r} is no token of the result; name one that a source has"
                )
            if row.source == "zero":
                continue
            source = self.parties[row.source]
            if row.id is not None and row.id >= source.vocab_size:
                raise SourceError(
                    f"tokens.rows.{token}.id: {source} has {source.vocab_size} rows (found "
                    f"{row.id})"
                )
            if row.id is None and (wanted := row.token or token) not in self.known[id(source)]:
                raise SourceError(
                    f"tokens.rows.{token}: {source} has no token {wanted!r}; name another "
                    "source or token"
                )

    @cached_property
    def tables(self) -> dict[int, torch.Tensor]:
        """The row of each source, by its `id`, for each row of the result; -1: none."""
        import torch

        tables = {}
        for key, known in self.known.items():
            rows = [-1] * self.size
            for token, row in self.tokens.items():
                rows[row] = known.get(token, -1)
            tables[key] = torch.tensor(rows, dtype=torch.long)
        return tables

    def rows(self, name: str, own: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """A source's tensor with the rows of the result.

        Args:
            name: Its name.
            own: The source's tensor.
            table: The source's table.
        """
        import torch

        # A row of the result has its token's row of this source where there is one. Where not, in
        # this order: what the recipe says of the token (`tokens.rows`), the row of the default
        # source, else the mean of those that have it. Rows without a token pad the size to a
        # multiple; they get the mean of all others, so that no score of theirs stands out. Reading
        # other sources is put off until a row needs it.
        result = own.new_zeros(self.size, *own.shape[1:])
        present = table >= 0
        empty = torch.ones(self.size, dtype=torch.bool)
        result[present] = own[table[present]]
        taken = torch.tensor(sorted(self.tokens.values()), dtype=torch.long)
        empty[taken] = False
        missing = (~present & ~empty).nonzero()[:, 0]
        group = self._group(name)
        tensors = (
            {key: self.parties[key].read(name, own.dtype) for key in group}
            if len(missing) or self.part.rows
            else {}
        )
        if len(missing):
            result[missing] = self._given(missing, tensors).to(own.dtype)
        for token, row in self.part.rows.items():
            place = self.tokens[token]
            if present[place] and not row.force:
                continue
            if row.source == "zero":
                result[place] = 0
            elif row.source in tensors:
                number = row.id
                if number is None:
                    number = self.known[id(self.parties[row.source])][row.token or token]
                result[place] = tensors[row.source][number]
        if empty.any():
            result[empty] = result[taken].float().mean(0).to(own.dtype)
        return result

    def _given(
        self, missing: torch.Tensor, tensors: Mapping[int | str, torch.Tensor]
    ) -> torch.Tensor:
        """The rows of tokens that a source lacks, in float32; zeros where nobody has one."""
        import torch

        # total / count: the mean over the sources that have the token, in float32 and in the order
        # of the parties. The default's own row then takes the place of the mean.
        total = None
        count = torch.zeros(len(missing))
        for key, tensor in tensors.items():
            places = self.tables[id(self.parties[key])][missing]
            there = places >= 0
            if total is None:
                total = torch.zeros(len(missing), *tensor.shape[1:])
            total[there] += tensor[places[there]].float()
            count += there
        assert total is not None  # a tensor is merged from one source at least
        total /= count.clamp(min=1).reshape(-1, *[1] * (total.ndim - 1))
        if self.default is not None and self.default in tensors:
            places = self.tables[id(self.parties[self.default])][missing]
            there = places >= 0
            total[there] = tensors[self.default][places[there]].float()
        return total

    def _group(self, name: str) -> list[int | str]:
        if self.groups is None:
            return list(self.parties)
        keys = self.groups[0 if classify(name)[0] == "embed" else 1]
        return [key for key in dict.fromkeys(keys) if key in self.parties]


class MatchedSource(View):
    """A source with the tokens of the result."""

    def __init__(self, inner: Parent, match: _Match) -> None:
        super().__init__(inner)
        self._match = match

    @cached_property
    def config(self) -> PretrainedConfig:
        """The source's config with the result's number of rows."""
        config = copy.deepcopy(self.inner.config)
        for part in (config, config.get_text_config()):
            if hasattr(part, "vocab_size"):
                part.vocab_size = self._match.size
        return config

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The source's tensors; those with a row per token have the result's number of rows."""
        size = self._match.size
        return {
            name: replace(info, shape=(size, *info.shape[1:])) if self._has_rows(name) else info
            for name, info in self.inner.tensors.items()
        }

    @cached_property
    def changes(self) -> dict[str, Any]:
        """Changes that the adapter makes to the source's own tensors."""
        return self.inner.changes

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one tensor, with a row for each token of the result; see `Parent.read`."""
        tensor = self.inner.read(name, dtype)
        if not self._has_rows(name):
            return tensor
        return self._match.rows(name, tensor, self._match.tables[id(self.inner)])

    def _has_rows(self, name: str) -> bool:
        """Tell whether a tensor has one row per token, in all that have it; a norm may be as long
        by chance."""
        # A tensor has a row per token if its first dimension is the number of rows in every source
        # that has it. In one source a norm of the same length could pass; the names exclude that.
        if classify(name)[0] == "block" or "norm" in name or "ln_f" in name:
            return False
        return all(
            source.tensors[name].shape[:1] == (source.vocab_size,)
            for source in [self.inner, *self._match.parties.values()]
            if name in source.tensors
        )

    def origin(self, name: str) -> Origin:
        """The source's own tensor."""
        return self.inner.origin(name)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file with the result's tokens in it."""
        if name == "tokenizer.json":
            return self._match.tokenizer
        data = self.inner.read_json(name)
        if name == "config.json":
            for part in (data, data.get("text_config")):
                if isinstance(part, dict) and "vocab_size" in part:
                    part["vocab_size"] = self._match.size
        return data

    def write_tokenizer(self, folder: Path) -> None:
        """Write tokenizer, chat templates and generation settings, but no older form of a tokenizer
        that was added to."""
        super().write_tokenizer(folder)
        if not self._match.extended:
            return
        text = json.dumps(self._match.tokenizer, ensure_ascii=False)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        for pattern in _OTHER_FILES:
            for file in folder.glob(pattern):
                file.unlink()
        file = folder / "tokenizer_config.json"
        if file.is_file():
            settings = json.loads(file.read_text(encoding="utf-8"))
            if "added_tokens_decoder" in settings:
                added = self._match.tokenizer["added_tokens"]
                by_id = {}
                for item in added:
                    rest = {key: value for key, value in item.items() if key != "id"}
                    by_id[str(item["id"])] = rest
                settings["added_tokens_decoder"] = by_id
                write_json(file, settings)

    def tokenizer(self) -> Any:
        """The tokenizer with the tokens of the result, loaded anew."""
        if not self._match.extended:
            return super().tokenizer()
        with TemporaryDirectory() as folder:
            self.write_tokenizer(Path(folder))
            (Path(folder) / "config.json").write_text(
                json.dumps(self.read_json("config.json")), encoding="utf-8"
            )
            return Source(folder, self.ref, trust_remote_code=self.trust_remote_code).tokenizer()


def _tokens(source: Parent) -> dict[str, int]:
    """The row of each token of a source, in the order of the rows; tokens without a row are left
    out."""
    found = Tokenizer.read(_tokenizer_json(source))
    if found is None:
        raise SourceError(
            f"{source}: its tokenizer.json cannot be read; vocabularies are matched by its tokens"
        )
    rows: dict[str, int] = {}
    for number, token in sorted(found.tokens.items()):
        if number < source.vocab_size:
            rows.setdefault(token, number)
    return rows


def _tokenizer_json(source: Parent) -> dict[str, Any]:
    """Read ``tokenizer.json``; a source without one has its tokenizer converted."""
    if (source.beside / "tokenizer.json").is_file():
        return source.read_json("tokenizer.json")
    backend = getattr(source.tokenizer(), "backend_tokenizer", None)
    if backend is None:
        raise SourceError(
            f"{source}: has no tokenizer.json, by which vocabularies are matched; save its "
            "tokenizer again"
        )
    return dict(json.loads(backend.to_str()))


def _extended(
    data: dict[str, Any], tokens: Mapping[str, int], added: Mapping[str, Parent], owner: Parent
) -> dict[str, Any]:
    """The owner's tokenizer with the tokens of others.

    All tokens are then in the model's vocabulary, so that their numbers do not depend on the order
    in which they are added. What another source has as an added token is one here; what it has as a
    piece of words gets no merges, and is not produced.
    """
    model = data["model"]
    kept = list(data.get("added_tokens") or ())
    if isinstance(model["vocab"], dict):
        model["vocab"] = dict(sorted(tokens.items(), key=lambda item: item[1]))
    else:
        pieces = model["vocab"]
        rest = sorted((number, token) for token, number in tokens.items() if number >= len(pieces))
        if [number for number, _ in rest] != list(range(len(pieces), len(pieces) + len(rest))):
            raise SourceError(
                f"{owner}: its tokens are not numbered one by one, so that none can be added"
            )
        lowest = min((score for _, score in pieces), default=0.0)
        model["vocab"] = [*pieces, *([token, lowest - 10] for _, token in rest)]
    for source in dict.fromkeys(added.values()):
        for item in _tokenizer_json(source).get("added_tokens") or ():
            if added.get(item["content"]) is source:
                kept.append({**item, "id": tokens[item["content"]]})
    data["added_tokens"] = sorted(kept, key=lambda item: int(item["id"]))
    return data
