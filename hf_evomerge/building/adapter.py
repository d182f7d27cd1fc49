"""A LoRA adapter as a result: the merge of adapters of one base, exact or of a fixed rank.

Where a method adds weighted task vectors, and each is a product of two thin matrices, the sum is
one too: ``A`` is all ``A_i`` below each other, ``B`` all ``c_i s_i B_i`` beside each other. The
base's weights are never read. A smaller rank is the best one of each module (Eckart and Young): QR
of both matrices, SVD of the small core, in float64.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint, Origin, Parent
from ..checkpoints.headers import STORED, TensorInfo, tensor_order, torch_dtype
from ..checkpoints.lora import CONFIG_FILE, WEIGHTS_FILE, Change
from ..checkpoints.model_folder import write_json
from ..errors import SourceError
from ..merging.core import why_no_products
from ..merging.method import Call
from ..merging.methods.common import divisor
from ..merging.rows import row_count
from ..recipes.recipe import Recipe, SourceRef
from .merged import Merged

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

Factors = tuple["Tensor", "Tensor"]
"""Two float32 matrices whose product is added to a stored weight: rows of the weight x rank, and
rank x columns."""


@dataclass(frozen=True)
class Module:
    """A linear layer that an adapter changes, or a convolution.

    Attributes:
        name: Name in the model that peft adapts.
        shape: The shape of its weight in the files.
        rank: The rank of the change.
        transposed: Whether the weight is stored with its inputs as rows.
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    transposed: bool = False

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns; a convolution's columns are the places of its window."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the two matrices as peft stores them, by letter."""
        outputs, inputs = self.sides[::-1] if self.transposed else self.sides
        window = self.shape[2:]
        if not window:
            return {"A": (self.rank, inputs), "B": (outputs, self.rank)}
        ones = [1] * len(window)
        return {"A": (self.rank, *self.shape[1:]), "B": (outputs, self.rank, *ones)}


class AdapterCheckpoint(Checkpoint):
    """An adapter that is computed while it is read. `factors` says what is added to each weight.

    Attributes:
        base: The model that it is an adapter of.
        modules: Modules that it changes, by the raw name of the weight.
        layers: Raw names of all weights of the base that are matrices.
        dtype: The dtype of its tensors.
        measured: Weights whose energy is measured: all where a rank was given, and none of an exact
            adapter.
        squares: Squared lengths of the change and of what the rank keeps of it, by weight, for
            those that were read.
        file: Name of its file.
        prefix: Start of its tensors' names.
    """

    file = WEIGHTS_FILE
    prefix = "base_model.model."
    base: SourceRef
    modules: Mapping[str, Module]
    layers: list[str]
    measured: list[str]
    dtype: str = "float32"

    def __init__(self) -> None:
        self.squares: dict[str, tuple[float, float]] = {}
        self._pairs: dict[str, Factors] = {}
        self._locks = {name: Lock() for name in self.modules}

    @abstractmethod
    def factors(self, name: str) -> Factors:
        """Compute the two matrices whose product is added to a weight, and note in `squares` what
        the rank keeps."""

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Dtype and shape of both matrices of every module, by peft's names."""
        return {
            name: TensorInfo(STORED[self.dtype], shape)
            for name, (_, _, shape) in self._matrices.items()
        }

    @cached_property
    def _matrices(self) -> dict[str, tuple[str, str, tuple[int, ...]]]:
        found = {}
        for weight in sorted(self.modules, key=tensor_order):
            module = self.modules[weight]
            for letter, shape in module.matrices.items():
                name = f"{self.prefix}{module.name}.lora_{letter}.weight"
                found[name] = (weight, letter, shape)
        return found

    def stream(self, name: str) -> Iterator[Tensor]:
        """Yield one of the two matrices of a module; both are made when the first is read."""
        weight, letter, _ = self._matrices[name]
        # Two threads write the two matrices of a module. The first makes both and leaves the pair
        # for the second, which takes it out again, so that no pair stays in memory.
        with self._locks[weight]:
            pair = self._pairs.pop(weight, None)
            if pair is None:
                pair = self._pairs[weight] = self.factors(weight)
        # The product belongs to the weight as it is stored; peft has it with outputs as rows: (L
        # R)' = R' L'.
        left, right = (pair[1].T, pair[0].T) if self.modules[weight].transposed else pair
        yield (left if letter == "B" else right).to(torch_dtype(STORED[self.dtype])).reshape(-1)

    def place(self, name: str) -> tuple[str, str, str]:
        """Put all tensors into one file."""
        return "", self.file.removesuffix(".safetensors"), name

    @property
    def energy(self) -> dict[str, float]:
        """Energy (squared length) of each module's change that the rank keeps, as a share."""
        return {
            self.modules[name].name: round(kept / whole, 6) if whole else 1.0
            for name, (whole, kept) in self._all_squares
        }

    @property
    def _all_squares(self) -> list[tuple[str, tuple[float, float]]]:
        for name in self.measured:
            if name not in self.squares:  # it was written by a build that was interrupted
                self.factors(name)
        return [(name, self.squares[name]) for name in self.measured]

    @property
    def kept(self) -> float:
        """Energy of the whole change that the rank keeps, as a share."""
        pairs = [pair for _, pair in self._all_squares]
        whole, kept = (sum(numbers) for numbers in zip(*pairs, strict=True))
        return kept / whole if whole else 1.0

    def remark(self) -> str:
        """Say which share of the energy the rank keeps, in all and in the module that loses
        most."""
        if not (energy := self.energy):
            return ""
        least = min(energy, key=lambda name: energy[name])
        return (
            f"rank {self._rank} keeps {self.kept:.1%} of the change's energy; least in {least}: "
            f"{energy[least]:.1%}"
        )

    @property
    def _rank(self) -> int:
        return max(module.rank for module in self.modules.values())

    def adapter_config(self) -> dict[str, Any]:
        """Fields of ``adapter_config.json``. Every module has the scaling 1, also for programs that
        read no patterns."""
        named = {module.name: module.rank for module in self.modules.values()}
        others = {
            name.removesuffix(".weight"): 0 for name in self.layers if name not in self.modules
        }
        architecture = str((self.config.architectures or [""])[0])
        causal = architecture.endswith("ForCausalLM")
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if causal else None,
            "auto_mapping": None
            if causal
            else {"base_model_class": architecture, "parent_library": "transformers"},
            "base_model_name_or_path": self.base.model,
            "revision": self.base.revision,
            **ranks_of({**others, **named}),
            "fan_in_fan_out": any(module.transposed for module in self.modules.values()),
            "lora_dropout": 0.0,
            "bias": "none",
            "use_rslora": False,
            "use_dora": False,
            "inference_mode": True,
        }

    def write_companions(self, folder: Path) -> None:
        """Write the config, the tokenizer and the chat template."""
        write_json(folder / CONFIG_FILE, self.adapter_config())
        self.tokenizer_source.write_tokenizer(folder)

    def unused(self, source: Parent, name: str) -> str:
        """Reason why a weight is left out: no adapter changes it."""
        return "as in the base"


@dataclass(frozen=True)
class Summand:
    """Part of one adapter in a module, with the factors of its rows: first row, last row + 1,
    number."""

    source: Parent
    change: Change
    runs: list[tuple[int, int, float]]

    @property
    def rank(self) -> int:
        """The rank of the product."""
        assert self.source.adapter is not None  # it has changes
        return self.source.adapter.tensors[self.change.a].shape[0]


class MergedAdapter(AdapterCheckpoint):
    """The merge of LoRA adapters of one base, as an adapter.

    Args:
        recipe: The recipe; its ``rank`` is the largest of the result, which is exact where there is
            none.
        merged: The recipe as a checkpoint.

    Raises:
        SourceError: It is no adapter; the message ends with the reason.
    """

    def __init__(self, recipe: Recipe, merged: Checkpoint) -> None:
        if not isinstance(merged, Merged) or merged.plan.stack is not None:
            raise SourceError("a path, a stack of slices or a part of a model is no adapter")
        _check(merged)
        self.merged = merged
        self.ref = merged.ref
        self.tokenizer_source = merged.tokenizer_source
        self.chat_template = merged.chat_template
        self.settings = merged.settings
        self.dtype = recipe.dtype or "float32"
        self.base = merged.plan.sources[0].ref.parts[0]
        self._terms = dict(self._find_terms())
        if not self._terms:
            raise SourceError("every adapter has the weight 0")
        self.layers = [name for name, info in merged.tensors.items() if len(info.shape) > 1]
        self.modules = {name: self._module(name, recipe.rank) for name in self._terms}
        self.measured = [] if recipe.rank is None else list(self.modules)
        super().__init__()

    def _find_terms(self) -> Iterator[tuple[str, list[Summand]]]:
        """The adapters that take part in each weight."""
        merged = self.merged
        changed = [source.changes for source in merged.plan.sources]
        for name in sorted({name for changes in changed for name in changes}, key=tensor_order):
            planned = merged.planned[name]
            terms = []
            call = Call.of_tensor(name, planned.values, planned.options)
            runs = [
                (first, last, [1.0] * len(changed) if merged.plan.core else _shares(here))
                for first, last, here in call.runs(row_count(planned.info.shape))
            ]
            for number, (source, changes) in enumerate(
                zip(merged.plan.sources, changed, strict=True)
            ):
                change = changes.get(name)
                if change is None:
                    continue
                own = [(first, last, shares[number]) for first, last, shares in runs]
                if any(share for _, _, share in own):
                    terms.append(Summand(source, change, own))
            if terms:
                yield name, terms

    def _module(self, name: str, rank: int | None) -> Module:
        terms = self._terms[name]
        change = terms[0].change
        total = sum(term.rank for term in terms)
        shape = terms[0].source.tensors[name].shape
        module = Module(self._module_name(name, change), shape, total, change.transposed)
        if self.merged.plan.core:  # V_A has no more rows than columns
            total = min(total, module.sides[1])
        own = total if rank is None or total <= rank else min(rank, *module.sides)
        return replace(module, rank=own)

    def _module_name(self, name: str, change: Change) -> str:
        """Name of a module in the class that the base is loaded as."""
        base = self.merged.plan.sources[0]
        if base.text_config is base.config:
            return change.module
        # Adapters of the language part alone call its layers `model.layers`, as a plain language
        # model does. Beside the whole base peft finds none of these, and vLLM ignores them in
        # silence: both read the names of the whole.
        return base.layout.modules[name].removesuffix(".weight")

    def factors(self, name: str) -> Factors:
        """Return the two matrices of a module: of all adapters beside each other, of core space,
        or the best of the rank."""
        if self.merged.plan.core:
            left, right = self.merged.factors(name)
        else:
            left, right = self._sum(name)
        if (rank := self.modules[name].rank) == right.shape[0]:
            if self.measured:
                # |L R|^2 = trace(L'L RR'), from two matrices as large as the rank: the product
                # itself is as large as the weight.
                exact = float(
                    ((left.double().T @ left.double()) * (right.double() @ right.double().T)).sum()
                )
                self.squares[name] = exact, exact
            return left, right
        left, right, squares = truncate(left, right, rank)
        self.squares[name] = float(squares.sum()), float(squares[:rank].sum())
        return left, right

    def _sum(self, name: str) -> Factors:
        """The adapters' matrices beside each other."""
        import torch

        lefts = []
        rights = []
        for term in self._terms[name]:
            assert term.source.adapter is not None  # it has changes
            left, right = term.source.adapter.scaled_factors(term.change)
            lefts.append(torch.cat([left[first:last] * share for first, last, share in term.runs]))
            rights.append(right)
        # sum_i c_i B_i A_i = [c_1 B_1, c_2 B_2, ...] [A_1; A_2; ...]: exact, of a rank that is the
        # sum of the ranks. c_i may differ between runs of rows, and scales rows of B_i then.
        return torch.cat(lefts, dim=1), torch.cat(rights)

    @property
    def config(self) -> PretrainedConfig:
        """The base's config."""
        return self.merged.config

    @property
    def sources(self) -> list[Parent]:
        """The adapters with their base."""
        return self.merged.sources

    def origin(self, name: str) -> Origin:
        """The weights with the adapters that a matrix is made of."""
        weight = self._matrices[name][0]
        inputs = [term.source.origin(weight).inputs[0] for term in self._terms[weight]]
        return Origin("merged", tuple(inputs))

    def download(self) -> None:
        """Fetch the adapters; the base's weights are not needed."""
        for source in self.sources:
            if source.adapter is not None:
                source.adapter.download()

    @property
    def warnings(self) -> list[str]:
        """Warn of doubtful sources, and of a rank that a weight has no use for, or servers
        refuse."""
        lines = list(self.merged.warnings)
        for module in self.modules.values():
            if module.rank > min(512, *module.sides):
                most = f"{min(module.sides)} is enough for its weight"
                most = "vLLM serves at most 512" if min(module.sides) > 512 else most
                lines.append(f"{module.name} has rank {module.rank}, and {most}; give a --rank")
                break
        return lines

    def __str__(self) -> str:
        return f"{self.merged}, as an adapter of rank {self._rank}"


def truncate(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best approximation of a product by one of a smaller rank.

    Args:
        left: Rows x any rank.
        right: Rank of `left` x columns.
        rank: The smaller rank.

    Returns:
        Two float32 matrices of equal lengths, and all squared singular values, from the largest, in
        float64. The largest entry of each column of the first is positive, so that signs are no
        matter of chance.
    """
    import torch

    # With L = Q1 R1 and R' = Q2 R2 the product is L R = Q1 (R1 R2') Q2', and its singular values
    # are those of the small core R1 R2'. Cutting them gives the best approximation of that rank
    # (Eckart and Young). Each factor gets the root of the values, so that neither is much larger
    # than the other.
    rows, upper = torch.linalg.qr(left.double())
    columns, lower = torch.linalg.qr(right.double().T)
    u, values, v = torch.linalg.svd(upper @ lower.T)
    left = rows @ u[:, :rank]
    right = v[:rank] @ columns.T
    root = values[:rank].sqrt()
    signs = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()[0]
    return (
        (left * (signs * root)).float(),
        ((signs * root)[:, None] * right).float(),
        values.square(),
    )


def _check(merged: Merged) -> None:
    """Raise `SourceError` unless the result is the base plus weighted task vectors, each of them a
    product, and all else is as in the base."""
    plan = merged.plan
    if plan.core:  # which is checked where it is planned
        return
    method = plan.method
    if not method.is_sum:
        raise SourceError(
            f"{method.name} is not linear in what the adapters change, unless the recipe says "
            "merge.core_space: true"
        )
    if not method.task_vectors and not plan.options["normalize"]:
        raise SourceError(f"{method.name} without normalize scales the base as well")
    if merged.recipe.vocabulary is not None:
        raise SourceError("vocabulary: the result has other rows than the base")
    if reason := why_no_products(plan.sources, plan.base, plan.kept, base_too=True):
        raise SourceError(reason)


def _shares(call: Call) -> list[float]:
    total = divisor(call.weights) if call.options.get("normalize") else 1.0
    return [call.options.get("lambda", 1.0) * weight / total for weight in call.weights]


def ranks_of(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Fields of peft's config for modules of these ranks, where 0 stands for modules without; every
    module has the scaling 1."""
    rank = max(ranks.values())
    short = _by_last_part(ranks)
    pattern = {_anchored(name, ranks): own for name, own in short.items() if own not in (0, rank)}
    return {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": [name for name, own in short.items() if own],
    }


def _anchored(name: str, names: Collection[str]) -> str:
    """A module's name as a pattern: peft takes it for the end of names, and where another module's
    name ends so, ``^`` keeps it from that."""
    ends = [other for other in names if other.endswith(f".{name}")]
    return f"^{name}" if ends and name in names else name


def _by_last_part(ranks: Mapping[str, int]) -> dict[str, int]:
    """The ranks by the ends of the modules' names, where all that end alike have one rank, and else
    by the whole names."""
    lasts = {name: name.rpartition(".")[2] for name in ranks}
    kinds: dict[str, set[int]] = {}
    for name, last in lasts.items():
        kinds.setdefault(last, set()).add(ranks[name])
    # A number would be that of a block as well, which is no layer.
    alike = {last for last, values in kinds.items() if len(values) == 1 and not last.isdigit()}
    return {lasts[name] if lasts[name] in alike else name: rank for name, rank in ranks.items()}
