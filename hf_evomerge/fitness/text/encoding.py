"""Examples as token ids, in batches of similar length; and the state that a model is scored in."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...errors import FitnessError, told
from ..example import Example
from ..pictures import SeeingTokenizer

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
FORCED_TOKENS = (
    "forced_bos_token_id",
    "forced_eos_token_id",
)  # with which the decoders of some classes begin and end


def render_prompt(example: Example, tokenizer: Any) -> str:
    """The text that the model is given: the prompt itself, or the prompt in the tokenizer's chat
    template; before it the example's shots, as text or as turns of the chat.

    Raises:
        FitnessError: The example is a chat and the tokenizer has no chat template, or the template
            refuses the chat.
    """
    if example.pictures and not isinstance(tokenizer, SeeingTokenizer):
        raise FitnessError(
            f"{example.id}: has pictures, which a tokenizer alone cannot read; the model "
            "needs a processor"
        )
    if not example.chat:
        return "".join(map("".join, example.shots)) + example.prompt
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    if not getattr(tokenizer, "chat_template", None):
        raise FitnessError(
            f"data.chat: {name} has no chat template; set 'chat: false' and write a 'template'"
        )
    messages = messages_of(example)
    if example.pictures:  # as chat templates for pictures want it
        parts = [{"type": "image"}] * len(example.pictures)
        messages = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            for message in messages
        ]
        messages[-1]["content"] = [*parts, *messages[-1]["content"]]
    refuses = f"data.chat: set 'chat: false'; the template of {name} refuses {example.id}: "
    with told(FitnessError, Exception, refuses):  # a template is somebody else's program
        return render_chat(tokenizer, messages)


def render_chat(
    tokenizer: Any, messages: Sequence[dict[str, Any]], *, open_ended: bool = True
) -> str:
    """Render messages by the tokenizer's chat template, as text.

    Args:
        tokenizer: The tokenizer, or a processor's.
        messages: Each with ``role`` and ``content``.
        open_ended: Whether an answer follows; otherwise the last message is one.
    """
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_ended)
    )


def messages_of(example: Example) -> list[dict[str, Any]]:
    """The messages of a chat, without pictures."""
    messages = [] if example.system is None else [{"role": "system", "content": example.system}]
    for shot in example.shots:
        messages.append({"role": "user", "content": shot.prompt})
        messages.append({"role": "assistant", "content": shot.answer})
    messages.append({"role": "user", "content": example.prompt})
    return messages


def encode_prompt(example: Example, tokenizer: Any) -> list[int]:
    """The prompt's token ids, as a model is given them to continue.

    A chat template writes its own special tokens, so none are added to it; an end-of-text token
    that the tokenizer appends is taken off, because the text goes on.
    """
    return _encode_prompt(render_prompt(example, tokenizer), example, tokenizer)


def encode_source(example: Example, tokenizer: Any) -> list[int]:
    """The token ids that an encoder is given: the prompt with whatever the tokenizer puts around a
    text.

    Raises:
        FitnessError: The example has pictures, which no encoder of texts looks at.
    """
    if example.pictures:
        raise FitnessError(
            f"{example.id}: has pictures, and the model has an encoder of texts; leave "
            "image_field out"
        )
    return list(
        tokenizer(render_prompt(example, tokenizer), add_special_tokens=not example.chat)[
            "input_ids"
        ]
    )


def encode_pair(example: Example, separator: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token ids of the prompt, and of the separator and the answer after it.

    The whole text is tokenised at once and cut after the prompt's own tokens, so that the answer's
    tokens are those that follow in running text (`` 18`` is one token after ``Answer:``). Where the
    whole text does not begin with the prompt's own tokens, because one token would reach over the
    boundary, the two are tokenised apart. Either way the model is given exactly the tokens that it
    is given to generate from, so a score here and a generated answer speak of the same thing.
    """
    text = render_prompt(example, tokenizer)
    prompt = _encode_prompt(text, example, tokenizer)
    whole = _encode(text + separator + example.answer, example, tokenizer)
    if whole[: len(prompt)] == prompt:
        answer = whole[len(prompt) :]
    else:
        answer = list(tokenizer(separator + example.answer, add_special_tokens=False)["input_ids"])
    if not answer:
        raise FitnessError(f"{example.id}: the answer {example.answer!r} has no tokens")
    return prompt, answer


def _encode_prompt(text: str, example: Example, tokenizer: Any) -> list[int]:
    if example.pictures:
        tokenizer.remember(text, example)
    return _encode(text, example, tokenizer)


def _encode(text: str, example: Example, tokenizer: Any) -> list[int]:
    if example.pictures:
        ids = tokenizer.encode_seen(text, example)
    else:
        # not verbose: `check_length` knows what is too long
        written = tokenizer(text, add_special_tokens=not example.chat, verbose=False)
        ids = list(written["input_ids"])
    end = tokenizer.eos_token
    if ids and end is not None and ids[-1] == tokenizer.eos_token_id and not text.endswith(end):
        ids.pop()
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise FitnessError(f"{example.id}: the prompt {text!r:.80} has no tokens")
    return ids


# `sorted` is stable, so equal lengths keep their order and the batches are a function of the
# lengths alone. Padding of a batch goes to its longest member; similar lengths keep that small.
def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, so that little is spent on padding; shortest first,
    ties in order."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def check_length(model: Any, tokens: int, what: str) -> None:
    """Refuse sequences that are longer than the model has positions for: on a GPU they would end
    the process."""
    limit = positions(model.config)
    if limit is not None and tokens > limit:
        raise FitnessError(
            f"{what} takes {tokens} tokens; the model has {limit} positions; shorten it, "
            "or leave it out"
        )


def room(model: Any, prompt: Sequence[int]) -> int:
    """Count the tokens that a model has positions for after a prompt; with an encoder the prompt
    takes none of them."""
    limit = positions(model.config)
    if limit is None:
        return sys.maxsize
    return limit - (1 if encodes(model) else len(prompt))


def positions(config: Any) -> int | None:
    """The positions that a model of this config has; None where it sets no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def encodes(model: Any) -> bool:
    """Tell whether a model has an encoder for prompts, and a decoder that writes."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def device_of(model: Any) -> torch.device:
    """Return the device for inputs."""
    device: torch.device = next(model.parameters()).device
    return device


def plain_generation(model: Any) -> GenerationConfig:
    """Generation config with a model's special tokens, and nothing else that its
    ``generation_config.json`` asks for."""
    from transformers import GenerationConfig

    kept = (*SPECIAL_TOKENS, *(FORCED_TOKENS if encodes(model) else ()))
    return GenerationConfig(**{name: getattr(model.generation_config, name) for name in kept})


@contextmanager
def scoring(model: Any, *, gradient: bool = False) -> Iterator[None]:
    """Run the model without dropout, with `plain_generation`, and without gradients unless they are
    wanted; then restore it."""
    import torch

    modules = (
        [model]
        if hasattr(model, "train")
        else [m for m in model.components.values() if hasattr(m, "train")]
    )
    before = [module.training for module in modules]  # several of a model with components
    writers = [
        part
        for module in modules
        for part in module.modules()
        if getattr(part, "generation_config", None) is not None
    ]
    configs = [writer.generation_config for writer in writers]
    for module in modules:
        module.eval()
    try:
        for writer in writers:
            writer.generation_config = plain_generation(writer)
        with torch.enable_grad() if gradient else torch.inference_mode():
            yield
    finally:
        for writer, config in zip(writers, configs, strict=True):
            writer.generation_config = config
        for module, training in zip(modules, before, strict=True):
            module.train(training)
