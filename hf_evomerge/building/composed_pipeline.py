"""A diffusion pipeline one component of which is a merge; the others are copied from named sources,
with all their files."""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.checkpoint import Parent
from ..checkpoints.component import Component
from ..checkpoints.headers import torch_dtype
from ..checkpoints.inside import check_inside
from ..checkpoints.model_folder import INDEX, write_json
from ..checkpoints.repository import SMALL_FILES
from ..errors import SourceError
from .composed import Composed

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class ComposedPipeline(Composed):
    """A merge of one component of several pipelines, in the pipeline that the first of them is: see
    `Composed`.

    ``components`` may name those without weights too, such as a scheduler or a tokenizer; whatever
    they are there, they are in the result, be they of other sizes.
    """

    def _take(self, part: str, donor: Parent) -> None:
        """Put a component of another pipeline in the place of the pipeline's own."""
        if part not in donor.entries or part not in self.host.entries:
            known = ", ".join(
                donor.entries if donor.entries and part in self.host.entries else self.host.entries
            )
            raise SourceError(
                f"components.{part}: there is no such component in {donor} or in "
                f"{self.host}; there are {known}"
            )
        if part not in donor.parts:
            return
        self._parts[part] = Component(donor, part)
        kept = {
            raw: planned for raw, planned in self.planned.items() if not raw.startswith(f"{part}/")
        }
        self.planned = kept | {
            raw: self._copy(donor, raw) for raw in donor.tensors if raw.startswith(f"{part}/")
        }

    def place(self, name: str) -> tuple[str, str, str]:
        """The folder of the tensor's component."""
        part, _, own = name.partition("/")
        return part, self._owner(part).parts[part].stem.removesuffix(".fp16"), own

    def _owner(self, part: str) -> Parent:
        """The pipeline that a component is of, where it is not merged: the first one, or the one
        that the recipe names."""
        number = (self.recipe.components or {}).get(part)
        return self.host if number is None else self._sources[number].whole

    @property
    def architecture_warnings(self) -> list[str]:
        """Nothing: diffusers says what is missing when it loads the result."""
        return []

    @cached_property
    def config(self) -> PretrainedConfig:
        """Config of a `Pipeline`, with the result's dtype."""
        config = type(self.host.config).from_dict(self.host.config.to_dict())
        dtypes = {info.dtype for info in self.tensors.values() if info.is_float}
        config.dtype = torch_dtype(dtypes.pop()) if len(dtypes) == 1 else None
        return config

    def write_companions(self, folder: Path) -> None:
        """Write ``model_index.json``; copy configs, tokenizers and schedulers from their sources,
        and no code."""
        index = {
            key: value
            for key, value in self.host.read_json(INDEX).items()
            if key != "_name_or_path"
        }
        for part in self.host.entries:
            owner = self._owner(part)
            index[part] = owner.read_json(INDEX)[part]
            (folder / part).mkdir(exist_ok=True)
            for pattern in SMALL_FILES:
                for file in sorted((owner.folder / part).glob(pattern)):
                    if file.name.endswith(
                        (".index.json", ".fp16.json")
                    ):  # of files that are not copied
                        continue
                    check_inside(owner.folder, file)
                    shutil.copyfile(file, folder / part / file.name)
            if self.recipe.dtype is not None and part in owner.parts:
                _set_dtype(folder / part / "config.json", self.recipe.dtype)
        write_json(folder / INDEX, index)


def _set_dtype(file: Path, dtype: str) -> None:
    """Let a component's config say the result's dtype, where it says one."""
    fields = json.loads(file.read_text(encoding="utf-8"))
    for key in ("dtype", "torch_dtype"):
        if key in fields:
            fields[key] = dtype
    write_json(file, fields)
