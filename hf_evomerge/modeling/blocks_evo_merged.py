"""What a block adds to the residual stream, and what reads the stream: found on a small random
model, and proved there.

No architecture is known by its name: its own class is built with small sizes, its parameters and
states are multiplied, and what changes is looked at. A layout that was found is believed only if
the block computes what it says, so what is built in another way is refused.

This file travels to the Hub beside the weights: it imports nothing but torch, transformers and the
files beside it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from .layers_evo_merged import (
    ScaleInput,
    ScaleOutput,
    _first,
    _with_first,
    decoder_layers,
    find_layers,
    source_class,
)
from .sources_evo_merged import config_along

# Sizes of this and more are divided by the first of these numbers with which the architecture runs.
_LARGE = 256
_DIVISORS = (16, 8, 4, 2, 1)
# The scale that is tried, the difference that is rounding, and the difference that is none,
# relative to what is added.
_SCALE = -2.0
_TOLERANCE = 2e-3
_NOTHING = 1e-5


class Change(NamedTuple):
    """Change of a weight w: ``(w + offset) * factor - offset``; the offset is 1 where a norm
    multiplies by 1 + w."""

    factor: float
    offset: float = 0.0


@dataclass
class Layout:
    """How a block, or what stands before or behind the blocks, meets the residual stream.
    Parameters have their offsets.

    Attributes:
        writers: Parameters that scale what is added to the stream, the last used first; of every
            expert.
        branch: The submodule whose output is added last, after another's; ``""`` where there is
            none.
        norms: Weights of norms that read the stream. They ignore the size of their input, but not
            its sign.
        readers: Weights of linear maps that read the stream without a norm in front.
        unsigned: A norm without a weight that reads the stream.
        refusal: Why scales of the stream cannot be multiplied into the weights; ``""`` where they
            can.
    """

    writers: dict[str, float] = field(default_factory=dict)
    branch: str = ""
    norms: dict[str, float] = field(default_factory=dict)
    readers: dict[str, float] = field(default_factory=dict)
    unsigned: str = ""
    refusal: str = ""

    def changes(self, others: float, last: float, sign: float, reader: float) -> dict[str, Change]:
        """Return the changes of parameters.

        Args:
            others: The factor of what is added to the stream, but for the last branch.
            last: The factor of the last branch.
            sign: The factor of the norms that read: 1 or -1.
            reader: The factor of the weights that read without a norm.
        """
        in_last = {
            name for name in self.writers if self.branch and name.startswith(f"{self.branch}.")
        }
        changes = {
            name: Change(last if name in in_last else others, offset)
            for name, offset in self.writers.items()
        }
        changes |= {name: Change(sign, offset) for name, offset in self.norms.items()}
        changes |= {name: Change(reader, offset) for name, offset in self.readers.items()}
        return {name: change for name, change in changes.items() if change.factor != 1}


class Layouts(NamedTuple):
    """The layouts of a model.

    Attributes:
        layers: The name of the list of blocks in the model without head.
        blocks: The layout of each block.
        embeddings: What makes the first hidden state.
        final: What reads the last.
    """

    layers: str
    blocks: list[Layout]
    embeddings: Layout
    final: Layout


def layouts_of(config: PreTrainedConfig) -> Layouts:
    """Find the layouts of an architecture with these settings.

    Args:
        config: The configuration of a language model.

    Raises:
        ValueError: A small model of it does not run.
    """
    texts = _block_texts(config)
    kinds = list(dict.fromkeys(texts))
    few = config_along([config], [(0, texts.index(kind)) for kind in kinds], 0)
    if _block_texts(few) != kinds:  # the number of a layer says of which kind it is
        few = config
        kinds = texts
    found = _layouts(type(few), json.dumps(few.to_dict(), sort_keys=True))  # type: ignore[arg-type]
    return found._replace(blocks=[found.blocks[kinds.index(text)] for text in texts])


def _block_texts(config: PreTrainedConfig) -> list[str]:
    """What each block is made of."""
    with torch.device("meta"):
        model = source_class(config, MODEL_MAPPING)(config)
    return [str(block) for block in decoder_layers(model).children()]


@lru_cache(maxsize=64)
def _layouts(kind: type[PreTrainedConfig], fields: str) -> Layouts:
    # whatever surrounds the call, such as from_pretrained, which builds on the meta device
    with torch.device("cpu"), torch.no_grad(), torch.random.fork_rng(devices=[]):
        model = _small_model(kind, json.loads(fields))
        name = find_layers(model, model.config.num_hidden_layers)
        blocks = dict(model.get_submodule(name).named_children())
        calls: dict[str, tuple[Any, ...]] = {}
        with _hooked(blocks, lambda number, *call: calls.update({number: call})):
            _run(model)
        layouts = {
            number: _block_layout(block, *calls[number][:2]) for number, block in blocks.items()
        }
        embeddings = Layout()
        final = Layout()
        outside = [part for part, _ in model.named_modules() if not part.startswith(f"{name}.")]
        first = blocks["0"]
        last = list(blocks)[-1]
        _Stage(model, partial(_first_state, model, first), outside, 0.0).find_writers(embeddings)
        state = _first(calls[last][2])
        _Stage(model, partial(_end, model, blocks[last], state), outside, 0.0).find_readers(
            final, adds=False
        )
        return Layouts(name, list(layouts.values()), embeddings, final)


def _small_model(kind: type[PreTrainedConfig], fields: dict[str, Any]) -> PreTrainedModel:
    """A small random model without head, in which norms have hardly any epsilon."""
    random = torch.Generator().manual_seed(0)
    for divisor in _DIVISORS:
        try:
            config = kind(**_divided(fields, divisor))
            config._attn_implementation = "eager"
            model = source_class(config, MODEL_MAPPING)(config).float().eval()
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=random)
                else:
                    parameter.normal_(1, 0.1, generator=random)
            for module in model.modules():
                epsilons = [
                    name
                    for name, value in vars(module).items()
                    if "eps" in name and isinstance(value, float)
                ]
                vars(module).update(dict.fromkeys(epsilons, 1e-30))
            _run(model)
        except (
            Exception
        ) as error:  # each architecture trips in its own way over sizes that it does not expect
            cause = error
        else:
            return model
    text = " ".join(str(cause).split())
    raise ValueError(
        f"a small {kind.model_type!r} does not run: {type(cause).__name__}: {text:.200}"
    ) from cause


def _divided(value: Any, divisor: int, key: str = "") -> Any:
    """Settings with smaller sizes; those of rotary embeddings are lists."""
    if isinstance(value, dict):
        return {name: _divided(each, divisor, name) for name, each in value.items()}
    if key == "mrope_section":
        return [size // divisor for size in value]
    if key.endswith("_factor") and isinstance(value, list):
        return value[: len(value) // divisor]
    return -(-value // divisor) if type(value) is int and value >= _LARGE else value


def _run(model: nn.Module) -> Tensor:
    """The last hidden state for two sequences of tokens."""
    return _first(model(torch.arange(3, 15).view(2, 6), use_cache=False).to_tuple())


def _first_state(model: nn.Module, block: nn.Module, scale: float) -> Tensor:
    """The state that the first block is given."""
    states = []
    with _hooked({"": block}, lambda _, args, kwargs, output: states.append(_state(args, kwargs))):
        _run(model)
    return states[0]


def _end(model: nn.Module, block: nn.Module, state: Tensor, scale: float) -> Tensor:
    """What the model makes of a scaled last state."""
    with _hooked({"": block}, lambda _, args, kwargs, output: _with_first(output, state * scale)):
        return _run(model)


def _block_layout(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layout:
    """The layout of a block, which was called with these arguments."""

    def run(scale: float) -> Tensor:
        scaled, named = ScaleInput(scale)(block, args, kwargs)
        return _first(block(*scaled, **named))

    names = [name for name, _ in block.named_modules() if name]
    stage = _Stage(block, run, names, _state(args, kwargs))
    layout = Layout()
    stage.find_writers(layout)
    layout.branch = stage.last_branch(layout)
    if not layout.refusal:
        stage.find_readers(layout, adds=True)
    return layout


def _state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first tensor among arguments."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _distance(one: Tensor, other: Tensor | float) -> float:
    return float((one - other).abs().max())


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Hang a hook on modules for a while: it is given a name, the arguments by position and by
    name, and the output."""
    handles = [
        module.register_forward_hook(
            lambda _, *call, name=name: hook(name, *call), with_kwargs=True
        )
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _changed(module: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Change parameters for a while."""
    kept = {name: module.get_parameter(name).data for name in changes}
    for name, (factor, offset) in changes.items():
        module.get_parameter(name).data = (kept[name] + offset) * factor - offset
    try:
        yield
    finally:
        for name, values in kept.items():
            module.get_parameter(name).data = values


# No list of architectures: what a parameter does is measured on a small random block.
#
# Writers. Let y(f) be the output with the parameter w in place of f w. It scales what is added if y
# moves, and is a straight line in f:
#
#   y(0) + y(2) = 2 y(1)   (1)
#
# The last used are asked first, and stay 0 once found: what acts on the output only through them no
# longer moves it, and is no writer. When all are 0 the output must be the input. A block that does
# more to the stream is refused.
#
# Readers. The writers are divided by c, and the stream with them. A module whose input turns out
# divided reads the stream. It is a norm if its weight times -1 makes up for the sign, a linear map
# if its weight times c does. c is -2, as a norm hides a factor but not a sign.
#
# Proof. All factors together must give the output for the scaled input, divided by c (2). A wrong
# guess fails (2), and the architecture is then refused rather than folded wrongly.
class _Stage:
    """A part of a model that takes a state and returns one: a block, or what stands before or
    behind the blocks.

    Args:
        module: What has its parameters.
        run: Computes it for its input times a number.
        names: The modules that may belong to it.
        state: Its input; 0 where that has another shape.
    """

    def __init__(
        self,
        module: nn.Module,
        run: Callable[[float], Tensor],
        names: Iterable[str],
        state: Tensor | float,
    ) -> None:
        self.module = module
        self.run = run
        self.state = state
        self.modules = {name: module.get_submodule(name) for name in names}
        # the arguments of each, in the order in which they begin; those that are not called come
        # first
        self.calls: dict[str, Any] = dict.fromkeys(self.modules)
        handles = [
            each.register_forward_pre_hook(partial(self._note, name), with_kwargs=True)
            for name, each in self.modules.items()
        ]
        self.output = run(1.0)
        for handle in handles:
            handle.remove()
        self.size = _distance(self.output, state)

    def _note(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        del self.calls[name]
        self.calls[name] = args, kwargs

    def changed(self, changes: Mapping[str, Change]) -> Tensor:
        """The output with changed parameters."""
        with _changed(self.module, changes):
            return self.run(1.0)

    def offset(self, name: str, key: str) -> float:
        """The offset of a parameter: 1 where its module returns something although all that it has
        is 0."""
        module = self.modules[name]
        if key != "weight" or self.calls[name] is None or module.get_parameter(key).dim() != 1:
            return 0.0
        args, kwargs = self.calls[name]
        with _changed(module, {own: Change(0.0) for own, _ in module.named_parameters()}):
            return float(bool(_first(module.forward(*args, **kwargs)).any()))

    def find_writers(self, layout: Layout) -> None:
        """Find the parameters that scale what is added.

        The last used come first. A parameter in which the output is a straight line is set to 0; of
        those that were used before it, only what is added in another way changes the output then.
        In the end the output is the input.
        """
        zeros: dict[str, Change] = {}
        now = self.output
        for name in reversed(self.calls):
            for key, _ in reversed(list(self.modules[name].named_parameters(recurse=False))):
                parameter = f"{name}.{key}".lstrip(".")
                offset = self.offset(name, key)
                none = self.changed({**zeros, parameter: Change(0.0, offset)})
                if (moved := _distance(none, now)) <= _NOTHING * self.size:
                    continue
                twice = self.changed({**zeros, parameter: Change(2.0, offset)})
                if _distance(none + twice, 2 * now) <= _TOLERANCE * moved:  # (1)
                    zeros[parameter] = Change(0.0, offset)
                    now = none
        layout.writers = {name: change.offset for name, change in zeros.items()}
        if _distance(now, self.state) > _TOLERANCE * self.size:
            layout.refusal = "something is done to the stream that no tensor scales"

    def last_branch(self, layout: Layout) -> str:
        """The outermost submodule whose output is added last; its writers scale it.

        The output is a straight line in the factor of the submodule's, and neither 0 nor the input
        where that is 0.
        """
        last = next(iter(layout.writers), "").split(".")[:-1]
        for name in (".".join(last[: depth + 1]) for depth in range(len(last))):
            if self.calls.get(name) is None:  # a list of modules
                continue
            outputs = []
            for factor in (0.0, 2.0):
                handle = self.modules[name].register_forward_hook(ScaleOutput(factor))
                outputs.append(self.run(1.0))
                handle.remove()
            none, twice = outputs
            close = _TOLERANCE * self.size
            if _distance(none + twice, 2 * self.output) > close or _distance(none, 0.0) <= close:
                continue
            by_weights = self.changed(
                Layout(writers=layout.writers, branch=name).changes(1.0, 2.0, 1.0, 1.0)
            )
            if _distance(by_weights, twice) <= close < _distance(none, self.state):
                return name
        return ""

    def find_readers(self, layout: Layout, *, adds: bool) -> None:
        """Find what reads the stream, and prove that scales of the stream can be multiplied into
        the weights.

        With the input x / c, and the writers divided by c, all is as with the input x but for the
        stream itself, which is divided by c. So a module whose input is divided by c reads the
        stream. It is made to return what it returned for x, so that what comes after it is as it
        was.
        """
        leaves: dict[str, nn.Module] = {}
        for name, module in self.modules.items():
            if not self.calls[name] or _state(*self.calls[name]) is None:
                continue
            inside = [*module.modules()][1:]
            if not any(part._parameters for part in inside):
                leaves[name] = module
        leaves = {
            name: module for name, module in leaves.items() if name.rpartition(".")[0] not in leaves
        }
        calls: list[tuple[Tensor, Any]] = []

        def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.append((_state(args, kwargs).clone(), output))

        def answer(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            whole, wanted = calls.pop(0)
            given = _state(args, kwargs)
            close = _TOLERANCE * float(whole.abs().max())
            is_stream = _distance(given * _SCALE, whole) <= close < _distance(given, whole)
            return (
                wanted
                if is_stream and self._reads(layout, name, args, kwargs, _first(wanted))
                else output
            )

        # The first run notes what each leaf was given and returned for the stream itself. In the
        # second the stream is divided; where a leaf is given a divided input it answers as before,
        # so that differences do not spread and the next one can be judged by itself.
        with _hooked(leaves, note):
            self.run(_SCALE)
        factor = 1 / _SCALE if adds else 1.0
        with _hooked(leaves, answer):
            self.changed(layout.changes(factor, factor, 1.0, 1.0))
        # without the weight of a norm only its size can be proved
        scale = abs(_SCALE) if layout.unsigned else _SCALE
        factor = 1 / scale if adds else 1.0
        # (2): the plain equal, beside the block with a scaled input.
        folded = self.changed(layout.changes(factor, factor, 1.0 if scale > 0 else -1.0, scale))
        if (
            not layout.refusal
            and _distance(folded, self.run(scale) * factor) > _TOLERANCE * self.size
        ):
            layout.refusal = (
                "with a scaled stream something is computed that no factors of weights make up for"
            )

    def _reads(
        self,
        layout: Layout,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wanted: Tensor,
    ) -> bool:
        """Find how a module reads the stream; False where it hands it on, as dropout does.

        Args:
            layout: Where that is written.
            name: The module.
            args, kwargs: Its arguments, with the stream divided.
            wanted: What it returned for the stream itself.
        """
        module = self.modules[name]
        close = _TOLERANCE * float(wanted.abs().max())

        def returned(scale: float, changes: Mapping[str, Change]) -> Tensor:
            scaled, named = ScaleInput(scale)(module, args, kwargs)
            with _changed(module, changes):
                return _first(module.forward(*scaled, **named))

        if not module._parameters and _distance(returned(1.0, {}) * _SCALE, wanted) <= close:
            return False
        for found, factor in ((layout.norms, -1.0), (layout.readers, _SCALE)):
            for key, _ in module.named_parameters(recurse=False):
                change = Change(factor, self.offset(name, key))
                if _distance(returned(1.0, {key: change}), wanted) <= close:
                    found[f"{name}.{key}"] = change.offset
                    return True
        if _distance(returned(-1.0, {}), wanted) <= close:
            layout.unsigned = name
        else:
            layout.refusal = f"{name} reads the stream, and is neither a norm nor a linear map"
        return True


def check_scale_target(config: Any) -> None:
    """Raise `ValueError` where the scales cannot act as the configuration says."""
    if config.scale_target != "mlp_delta" or all(scale == 1 for scale in config.scales[1:]):
        return
    for layout in layouts_of(config.decoder_config).blocks:
        if not layout.branch:
            raise ValueError(
                "scale_target: 'mlp_delta' is not defined for the layers of "
                f"{config.decoder_config.model_type!r}, "
                "which add no branch after another; use 'stream'"
            )
