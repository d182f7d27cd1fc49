"""The merged model by its definition, without the package: a plain deep model whose blocks are
called as the equations say."""

from tiny_models import ARCHITECTURES, PER_LAYER, tiny_model

# Where the decoder layers are, and which submodule of a block writes to the residual stream last.
LAYERS = {
    **dict.fromkeys(("gpt2", "gpt_neo", "falcon", "bloom"), "transformer.h"),
    **{"gpt_neox": "gpt_neox.layers", "opt": "model.decoder.layers", "mamba": "backbone.layers"},
}
LAST_BRANCH = {
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "exaone4"), "post_feedforward_layernorm"),
    **{
        "glm4": "post_mlp_layernorm",
        "lfm2": "feed_forward",
        "bloom": "mlp.dense_4h_to_h",
        "opt": "fc2",
    },
}


def layers_name(architecture):
    """The name of the list of decoder layers."""
    return LAYERS.get(architecture, "model.layers")


def deep_model(architecture, sources, path, **fields):
    """A plain model with one layer per hop: copies of the first terms' layers; the rest is the
    first source's."""
    hops = [hop.terms[0] for hop in path.hops]
    deep = tiny_model(
        architecture, len(hops), **_fields(architecture, [term.layer for term in hops]), **fields
    )
    prefix = layers_name(architecture)
    outside = {
        name: tensor
        for name, tensor in sources[0].state_dict().items()
        if not name.startswith(f"{prefix}.")
    }
    assert not deep.load_state_dict(outside, strict=False).unexpected_keys
    for layer, term in zip(deep.get_submodule(prefix), hops, strict=True):
        layer.load_state_dict(sources[term.source].get_submodule(prefix)[term.layer].state_dict())
    return deep


def _fields(architecture, layers):
    """The fields with one entry per layer, in the order in which the layers run."""
    fields = {}
    for name, value in ARCHITECTURES[architecture].items():
        if name == "mlp_only_layers":
            fields[name] = [place for place, layer in enumerate(layers) if layer in value]
        elif name in PER_LAYER and value is not None:
            fields[name] = [value[layer % len(value)] for layer in layers]
    return fields


def scaled_stream(deep, architecture, scales):
    """``x_k = beta_k * h_{k-1}``, written around every block, so that caches and generation work as
    in any model."""
    for layer, scale in zip(deep.get_submodule(layers_name(architecture)), scales, strict=True):
        layer.forward = _scaled(layer.forward, scale)
    return deep


def _scaled(forward, scale):
    return lambda hidden_states, *args, **kwargs: forward(hidden_states * scale, *args, **kwargs)


def logits_by_definition(architecture, sources, path, scale_target, ids):
    """The logits of a path with sums and scales, block by block.

    A block is split into what its last branch adds (``m``) and the rest (``r``) by running it with
    and without that branch.
    """
    deep = deep_model(architecture, sources, path)
    prefix = layers_name(architecture)
    branch = LAST_BRANCH.get(architecture, "mlp") if scale_target == "mlp_delta" else None
    state = {}

    def hop(place, blocks):
        def forward(hidden_states, *args, **kwargs):
            if place == 0 or branch is None:
                x = path.scales[place] * hidden_states
            else:
                x = state["r"] + path.scales[place] * state["m"]
            outputs = [(weight, run(x, *args, **kwargs)) for weight, run, _ in blocks]
            total = sum(weight * _first(output) for weight, output in outputs)
            if branch is not None:
                rests = []
                for weight, run, block in blocks:
                    hook = block.get_submodule(branch).register_forward_hook(_silence)
                    rests.append(weight * _first(run(x, *args, **kwargs)))
                    hook.remove()
                state["r"] = sum(rests)
                state["m"] = total - state["r"]
            output = outputs[0][1]
            return (total, *output[1:]) if isinstance(output, tuple) else total

        return forward

    for place, (layer, terms) in enumerate(zip(deep.get_submodule(prefix), path.hops, strict=True)):
        blocks = [(terms.terms[0].weight, layer.forward, layer)]
        for term in terms.terms[1:]:
            other = sources[term.source].get_submodule(prefix)[term.layer]
            blocks.append((term.weight, other.forward, other))
        layer.forward = hop(place, blocks)
    return deep(ids, use_cache=False).logits


def _first(output):
    return output[0] if isinstance(output, tuple) else output


def _silence(module, args, output):
    return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0
