"""Tokenizers whose tokens are words between spaces."""

import json

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def word_tokenizer(words, **more):
    """A tokenizer of these words, four of which are <pad>, <bos>, <eos> and <unk>; `more` are
    further settings of it."""
    ids = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special, **more)


def save_pair_tokenizer(folder, tokens, plain=("<unk>",), **settings):
    """A byte-pair tokenizer of these tokens; those in brackets are added to it, and of them only
    `plain` are its own."""
    flags = dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    ids = dict(enumerate(tokens))
    added = {
        number: {"content": token, "special": True, **flags}
        for number, token in ids.items()
        if token[0] in "<["
    }
    vocabulary = {
        token: number for number, token in ids.items() if number not in added or token in plain
    }
    merges = [list(token) for token in vocabulary if len(token) == 2]
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": vocabulary, "merges": merges}
    items = [{"id": number, **item} for number, item in added.items()]
    whole = {"version": "1.0", "added_tokens": items, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", **settings}
    settings["added_tokens_decoder"] = added
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
