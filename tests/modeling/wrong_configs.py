"""Refusals of a config.json, in words: for the test, and for the table in
benchmarks/pages/model-tests.md.

    python tests/modeling/wrong_configs.py

prints the table.
"""

import json

VALID = {
    "model_type": "evo_merged",
    "path": ["0:0", "0:2"],
    "scales": [1.0, 0.5],
    "scale_target": "stream",
    "embedding_source": 0,
    "sources": [{"model": "first", "layers": 3}, {"model": "second", "layers": 4}],
    "text_config": {"model_type": "llama", "num_hidden_layers": 2},
}


# What is wrong: the fields that differ from `VALID`, and how the message begins.
REFUSALS = {
    "a layer that is not there": (
        '{"path": ["0:0", "0:3"]}',
        "path[1]: layer 3 of source 0, which has 3 layers",
    ),
    "a source that is not there": (
        '{"path": ["2:0", "0:2"]}',
        "path[0]: source 2, but there are 2 sources, from 0",
    ),
    "a hop that cannot be read": (
        '{"path": ["0:0", "0:0-2"]}',
        "path[1]: cannot read '0:0-2'; a hop is written 0:3 or 0:3*0.5 + 1:3*0.5",
    ),
    "a weight beyond all numbers": (
        '{"path": ["0:0", "0:1*1e999"]}',
        "path[1]: cannot read '0:1*1e999'",
    ),
    "an empty path": (
        '{"path": [], "scales": []}',
        "path: no hops; a path has at least one, such as '0:0'",
    ),
    "a path that is a text": ('{"path": "0:0"}', "path: str, but it must be a list"),
    "a million hops": (
        json.dumps({"path": ["0:0"] * 10**6, "scales": None}),
        "path: 1000000 hops; a path has at most 4096",
    ),
    "5000 terms in one hop": (
        json.dumps({"path": [" + ".join(["0:0"] * 5000)], "scales": [1.0]}),
        "path: 5000 terms; a path has at most 4096",
    ),
    "too few scales": (
        '{"scales": [1.0]}',
        "scales: 1 numbers for a path of 2 hops; give one per hop",
    ),
    "a scale that is not a number": (
        '{"scales": [1.0, NaN]}',
        "scales[1]: nan is not a finite number",
    ),
    "a scale that is true": ('{"scales": [1.0, true]}', "scales[1]: True is not a finite number"),
    "an unknown scale target": (
        '{"scale_target": "attention"}',
        "scale_target: 'attention' is unknown; there are stream, mlp_delta",
    ),
    "embeddings of a source that is not there": (
        '{"embedding_source": 2}',
        "embedding_source: 2, but there are 2 sources, from 0",
    ),
    "an embedding source that is a text": (
        '{"embedding_source": "0"}',
        "embedding_source: '0' is not the number of a source",
    ),
    "a source without its depth": (
        '{"sources": [{"model": "a"}]}',
        "sources[0]: {'model': 'a'} is not a mapping with the number of 'layers'",
    ),
    "a revision that is a number": (
        '{"sources": [{"model": "a", "layers": 3, "revision": 7}]}',
        "sources[0].revision: 7 is not a text",
    ),
    "no architecture": (
        '{"text_config": {}}',
        "text_config.model_type: None is not an architecture of causal language models",
    ),
    "an architecture of images": (
        '{"text_config": {"model_type": "vit"}}',
        "text_config.model_type: 'vit' is not an architecture",
    ),
    "a merged model in a merged model": (
        '{"text_config": {"model_type": "evo_merged", "num_hidden_layers": 2}}',
        "text_config.model_type: 'evo_merged' is not an",
    ),
    "an architecture whose blocks have two attentions": (
        '{"text_config": {"model_type": "longcat_flash", "num_hidden_layers": 2}}',
        (
            "text_config.model_type: a block of 'longcat_flash' has two attentions with a cache "
            "slot each"
        ),
    ),
    "a text_config that is a number": (
        '{"text_config": 3}',
        "text_config: int, but it must be a configuration or a mapping",
    ),
    "a text_config of another depth": (
        '{"text_config": {"model_type": "llama", "num_hidden_layers": 3}}',
        "text_config.num_hidden_layers: 3, but the path needs 2 cache slots",
    ),
    "the same under its older name": (
        '{"text_config": {"model_type": "gpt2", "n_layer": 5}}',
        "text_config.num_hidden_layers: 5, but the path needs 2 cache slots",
    ),
    "a billion layers and no path": (
        '{"text_config": {"model_type": "llama", "num_hidden_layers": 1000000000}, '
        '"path": null, "scales": null}',
        "text_config.num_hidden_layers: 1000000000, but a path has between 1 and 4096 hops",
    ),
    "no attention heads": (
        '{"text_config": {"model_type": "llama", "num_hidden_layers": 2, '
        '"num_attention_heads": 0}}',
        "text_config: ",
    ),
    "too few kinds of layers": (
        '{"text_config": {"model_type": "qwen2", "num_hidden_layers": 2, '
        '"layer_types": ["full_attention"]}}',
        "text_config",
    ),
    "kinds of layers that disagree with the path": (
        '{"path": ["0:0", "0:0"], "text_config": {"model_type": "qwen2", "num_hidden_layers": 2, '
        '"layer_types": ["full_attention", "sliding_attention"]}}',
        (
            "text_config.layer_types: layer 0:0 is 'full_attention' in slot 0 but "
            "'sliding_attention' in slot 1"
        ),
    ),
    "a cache that is neither wanted nor not": (
        '{"use_cache": "no"}',
        "use_cache: 'no' is not true or false",
    ),
    "labels that are a number": ('{"id2label": 5}', "id2label: int, but it must be a mapping"),
    "a quantisation that is a number": (
        '{"quantization_config": 7}',
        "quantization_config: int, but it must be a mapping",
    ),
    "a field that follows from the path": (
        '{"slots": [0]}',
        "slots: not a field of the configuration, it follows from 'path'",
    ),
}


def table():
    """What is refused and how the message begins, as Markdown."""
    lines = ["| wrong | in config.json | the message begins |", "| --- | --- | --- |"]
    for what, (text, message) in REFUSALS.items():
        fields = json.loads(text)
        given = json.dumps(next(iter(fields.values())) if len(fields) == 1 else fields)
        name = f"{next(iter(fields))}: " if len(fields) == 1 else ""
        shown = f"{name}{given}"
        shown = shown if len(shown) <= 72 else f"{shown[:69]}..."
        lines.append(f"| {what} | `{shown}` | `{message.strip()}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table())
