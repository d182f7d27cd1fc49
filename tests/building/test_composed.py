"""A part of a model merged in the model that it is of: a vision-language model with the language
model of several."""

import pytest
import recipes
import torch
import transformers
import yaml
from classes import edited, tensors_of
from recipes import merge_of
from refused import refused
from safetensors.torch import save_file
from slowly import slow_beyond
from vlms import ALL_CLASSES, CLASSES, ID, NEEDS, inputs, save_plain, save_vlm, tokenizer

from hf_evomerge.building.build import build_model, check_recipe, open_merge, open_recipe
from hf_evomerge.building.folded import Folded, fold
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import EvoMergeError, PathError
from hf_evomerge.merging.live import LiveMerger
from hf_evomerge.recipes.recipe import Recipe


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Makes, once for each, two vision-language models, a plain language model that fits them, and
    a base of it."""
    made = {}

    def of(name):
        for library in NEEDS.get(name, []):
            pytest.importorskip(library)
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            for seed, model in enumerate(("sight", "other")):
                save_vlm(made[name] / model, name, seed)
            for seed, model in enumerate(("plain", "base"), start=2):
                save_plain(made[name] / model, name, seed)
        return made[name]

    return of


def recipe_of(folder, *models, **fields):
    """Task arithmetic of the language parts of some of `parents`, or of other folders."""
    weights = [0.3 + 0.4 * place for place in range(len(models))]
    sources = [
        model if isinstance(model, dict) else {"model": str(folder / model), "component": "text"}
        for model in models
    ]
    return merge_of(
        *sources, method="task_arithmetic", base=folder / "base", weights=weights, **fields
    )


def state(folder, kind=None):
    """The tensors of a model as transformers loads it, which must find all of them."""
    loader = getattr(transformers, kind) if kind else transformers.AutoModelForCausalLM
    model, report = loader.from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return dict(model.state_dict())


def in_text(name):
    """What a plain language model calls a tensor of a vision-language model's language part."""
    for part in ("model.language_model.", "model.text_model."):
        if name.startswith(part):
            return f"model.{name.removeprefix(part)}"
    return name if name == "lm_head.weight" else None


@pytest.mark.parametrize("name", slow_beyond(["llava", "gemma3"], CLASSES))
def test_a_merged_language_part_is_what_the_formula_gives(name, parents, built):
    """A plain model of the first source's class: its language part is merged, all else is its own,
    nothing is lost."""
    folder = parents(name)
    recipe = recipe_of(folder, "sight", "plain")
    out = built(recipe)
    sight = state(folder / "sight", CLASSES[name])
    merged = state(out, CLASSES[name])
    plain = state(folder / "plain")
    base = state(folder / "base")
    seen = 0
    for key, tensor in merged.items():
        own = in_text(key)
        if own is None:
            assert torch.equal(tensor, sight[key]), key
            continue
        seen += 1
        wanted = base[own] + 0.3 * (sight[key] - base[own]) + 0.7 * (plain[own] - base[own])
        torch.testing.assert_close(tensor, wanted)
    assert seen == len(plain)
    ledger = check_recipe(recipe).ledger
    assert ledger.kinds.total() == len(open_source(folder / "sight").tensors)
    assert (out / "processor_config.json").is_file()


@pytest.mark.parametrize("name", slow_beyond(["llava"], ["llava", "qwen2_5_vl", "gemma3"]))
def test_old_and_new_layouts_give_the_same_bits(name, parents, built, tmp_path):
    """Whether a file has the names of older or of today's releases of transformers, its parts are
    found and matched."""
    folder = parents(name)
    source = open_source(folder / "sight")
    modules = source.layout.modules
    new = tmp_path / "sight"
    new.mkdir()
    source.write_companions(new)
    tensors = {modules[raw]: tensor for raw, tensor in tensors_of(folder / "sight").items()}
    assert tensors.keys() != source.tensors.keys()  # they are saved under the older names
    save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
    left, right = (
        state(built(recipe_of(folder, first, "plain"), f"out{number}"), CLASSES[name])
        for number, first in enumerate(("sight", new))
    )
    assert all(torch.equal(tensor, right[key]) for key, tensor in left.items())


def test_a_part_may_come_from_another_source(parents, built):
    """Vision tower of one, projector of the other, language part of both and of a plain model; the
    ledger says how many."""
    folder = parents("llava")
    recipe = recipe_of(folder, "sight", "other", "plain", components={"vision": 1}, processor=1)
    out = built(recipe)
    sight, other, merged = (
        state(path, CLASSES["llava"]) for path in (folder / "sight", folder / "other", out)
    )
    for key, tensor in merged.items():
        if in_text(key) is None:
            assert torch.equal(tensor, (other if "vision_tower" in key else sight)[key]), key
    ledger = str(check_recipe(recipe).ledger)
    for count in ("21 merged", "4 copied from sight", "39 copied from other"):
        assert count in ledger
    assert "projector of other, of which the result has another's (4)" in ledger
    assert ledger in (out / "build.json").read_text()


def test_a_plain_source_needs_no_component(parents):
    """A language model beside a source that names a part takes part as the whole that it is."""
    folder = parents("llava")
    first, second = (
        check_recipe(recipe_of(folder, "sight", plain)).ledger
        for plain in ("plain", {"model": str(folder / "plain")})
    )
    assert str(first) == str(second)


@pytest.mark.parametrize("vocabulary", ["union", "tokenizer"])
def test_vocabularies_may_differ(vocabulary, built, tmp_path):
    """A model of sight has tokens for its pictures that a plain one has not: they stay, and the
    shared ones are merged."""
    sight = save_vlm(tmp_path / "sight", "llava", 0)
    for seed, name in enumerate(("plain", "base"), start=1):
        save_plain(tmp_path / name, "llava", seed, vocab_size=40)
    recipe = recipe_of(tmp_path, "sight", "plain")
    with refused("vocabulary size differs: 64"):
        check_recipe(recipe)
    out = built(recipe.model_copy(update={"vocabulary": vocabulary}))
    merged = state(out, CLASSES["llava"])
    own = sight.state_dict()
    for key in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
        assert torch.equal(merged[key][40:], own[key][40:])
        assert not torch.equal(merged[key][:40], own[key][:40])


def test_matched_vocabularies_of_two_models_of_sight(tmp_path):
    """Where rows are matched by token, the ledger says which parts are left out, and a live merge
    has the bits of the built."""
    save_vlm(tmp_path / "sight", "llava", 0)
    save_vlm(tmp_path / "other", "llava", 1)
    save_plain(tmp_path / "base", "llava", 2, vocab_size=40)
    recipe = recipe_of(tmp_path, "sight", "other", vocabulary="union")
    built = build_model(recipe, tmp_path / "out")
    assert "vision of other, of which the result has another's" in str(check_recipe(recipe).ledger)
    plan = open_merge(recipe, open_source).plan
    kind = getattr(transformers, CLASSES["llava"])
    model = kind.from_pretrained(tmp_path / "sight")
    model.resize_token_embeddings(plan.sources[0].vocab_size, mean_resizing=False)
    merger = LiveMerger(
        plan.sources, plan.base, recipe.merge.method, recipe.merge.options, recipe.seed, model
    )
    merger.apply(recipe.merge.parameters)
    merged = state(built, CLASSES["llava"])
    assert all(torch.equal(tensor, merged[name]) for name, tensor in model.state_dict().items())


def test_any_part_can_be_merged(parents, built):
    """The vision towers of two models of sight."""
    folder = parents("llava")
    folders = [folder / "sight", folder / "other"]
    sources = [{"model": str(each), "component": "vision"} for each in folders]
    out = built(merge_of(*sources))
    left, right, merged = (state(path, CLASSES["llava"]) for path in (*folders, out))
    changed = [key for key, tensor in merged.items() if not torch.equal(tensor, left[key])]
    assert changed
    for key in changed:
        assert "vision" in key
        torch.testing.assert_close(merged[key], (left[key] + right[key]) / 2)


REFUSED = {
    "parts: [audio, audio]": "has no component 'audio'; it has",
    "parts: [text, vision]": "component: text of .*, but vision of .*; what is merged is one",
    "{parts: [vision, vision], flow: {path: ['0:0-1']}}": (
        "flow: a path runs through language models; write component: text"
    ),
    "{merge: null, flow: {path: ['0:0-1']}, components: {vision: 1}}": (
        "components: a merge puts other parts in place"
    ),
    "components: {text: 1}": "components.text: is merged",
    "processor: 9": "processor: 9 is not a source",
    "components: {audio: 1}": "has no component 'audio'",
}


@pytest.mark.parametrize(("change", "message"), REFUSED.items())
def test_what_cannot_be_is_one_line(change, message, parents):
    """Before anything is written, with the place and what is there."""
    linear = {"parts": ["text"] * 2, "merge": {"method": "linear"}}
    fields = {**linear, **yaml.safe_load(change)}
    sources = [
        {"model": str(parents("llava") / name), "component": part}
        for name, part in zip(("sight", "other"), fields.pop("parts"), strict=True)
    ]
    with pytest.raises((EvoMergeError, ValueError), match=message):
        check_recipe(Recipe.model_validate({"sources": sources, **fields}))


def test_parts_that_do_not_fit_are_refused(parents, tmp_path):
    """Another width; the plain model named first; a vocabulary without the token of a picture, or
    with another in its place."""
    folder = parents("llava")
    fields = {"wide": {"hidden_size": 48}, "small": {"vocab_size": 12}, "named": {}}
    for name, changes in fields.items():
        save_plain(tmp_path / name, "llava", 4, **changes)
    text = tokenizer().backend_tokenizer.to_str().replace("<image>", "<picture>")
    (tmp_path / "named" / "tokenizer.json").write_text(text)
    for first, second, own, message in (
        ("sight", tmp_path / "wide", {}, "hidden_size differs: 32 in .*sight, 48 in .*wide"),
        (
            "plain",
            folder / "sight",
            {},
            "plain is all text, and .*sight is more; name first the model whose class",
        ),
        (
            "sight",
            tmp_path / "small",
            {"vocabulary": "tokenizer", "tokenizer": 1},
            f"image_token_index is {ID['<image>']}, but the result has 12 tokens",
        ),
        (
            "sight",
            tmp_path / "named",
            {"tokenizer": 1},
            "'<image>' there and '<picture>' in the tokenizer of",
        ),
    ):
        named = {"model": str(folder / first), "component": "text"}
        with refused(message):
            check_recipe(merge_of(named, second, **own))


def path_of(folder, *hops, component="text", plain="plain", flow=None, **fields):
    """A path through the language layers of a model of sight and a plain one."""
    sight = {"model": str(folder / "sight"), "component": component}
    return recipes.path_of(sight, folder / plain, hops=list(hops), flow=flow or {}, **fields)


@pytest.mark.parametrize("name", slow_beyond(["qwen2_vl"], ALL_CLASSES))
def test_a_path_through_language_parts_is_still_that_model(name, parents, built, tmp_path):
    """Each layer is its source's and stored once, all else is the model's of sight; folded, a plain
    model computes the same."""
    folder = parents(name)
    given = inputs(name)
    recipe = path_of(folder, "0:0", "1:1", "0:0", "0:1", flow={"scales": [1.0, 0.8, 1.25, -1.1]})
    out = built(recipe)
    model = transformers.AutoModelForImageTextToText.from_pretrained(out)
    assert [type(model).__name__, *model.config.architectures] == [
        "EvoMergedForImageTextToText"
    ] * 2
    sight = state(folder / "sight", ALL_CLASSES[name])
    plain = state(folder / "plain")
    for place, (source, layer) in enumerate(model.config.slots):
        for key, tensor in model.layers[place].state_dict().items():
            wanted = (
                plain if source == 1 else {in_text(own): tensor for own, tensor in sight.items()}
            )
            assert torch.equal(tensor, wanted[f"model.layers.{layer}.{key}"])
    for key, tensor in model.inner.state_dict().items():
        assert ".layers." in (in_text(key) or "") or torch.equal(tensor, sight[key]), key
    checkpoint = check_recipe(recipe).ledger
    assert checkpoint.kinds.total() == len(open_source(out).tensors)
    assert all(kind.startswith("copied from ") for kind in checkpoint.kinds)
    assert set(checkpoint.dropped) == {
        "layer not on the path",
        "embeddings, norm and head come from another source",
    }
    plainly = transformers.AutoModelForImageTextToText.from_pretrained(
        fold(out, tmp_path / "plain")
    )
    assert type(plainly).__name__ == ALL_CLASSES[name]
    with torch.no_grad():
        torch.testing.assert_close(
            plainly(**given).logits, model(**given).logits, atol=3e-5, rtol=1e-4
        )
    for file in ("processor_config.json", "tokenizer.json"):
        assert (
            (out / file).read_bytes()
            == (tmp_path / "plain" / file).read_bytes()
            == (folder / "sight" / file).read_bytes()
        )


def test_a_path_may_run_through_a_merge_of_parts(parents, built):
    """The merged language part is a source more; the ledger says what is whose; other dtypes are
    those of all parts."""
    folder = parents("llava")
    merge = {"method": "linear"}
    recipe = path_of(
        folder, "2:0", "1:1", "2:1", merge=merge, flow={"embedding_source": 2}, dtype="bfloat16"
    )
    out = built(recipe)
    model = transformers.AutoModelForImageTextToText.from_pretrained(out)
    sight = state(folder / "sight", CLASSES["llava"])
    plain = state(folder / "plain")
    own = "model.layers.1.mlp.up_proj.weight"
    mean = (sight["model.language_model.layers.1.mlp.up_proj.weight"] + plain[own]) / 2
    assert torch.equal(model.layers[2].mlp.up_proj.weight, mean.bfloat16())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    upcast = transformers.AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    assert {parameter.dtype for parameter in upcast.parameters()} == {torch.float32}
    kinds = check_recipe(recipe).ledger.kinds
    assert kinds == {"merged": 21, "copied from plain": 9, "copied from sight": 43}


def test_paths_through_parts_that_cannot_be_are_one_line(parents, tmp_path):
    """A part not named; embeddings of the plain model; a plain layer with tensors that have no
    place; scaled pictures."""
    folder = parents("llava")
    save_plain(tmp_path / "odd", "llava", 3)
    with edited(tmp_path / "odd") as tensors:
        tensors["model.layers.1.self_attn.q_norm.weight"] = torch.ones(8)
    for fields, message in (
        (
            {"component": None},
            "sight: 'llava' is more than a language model; write component: text",
        ),
        (
            {"flow": {"embedding_source": 1}},
            r"embedding_source: .*plain is all text, and .*sight is more; give that",
        ),
        (
            {"plain": tmp_path / "odd"},
            r"odd: the layers of .*sight have no place for its model.layers.1.self_attn.q_norm",
        ),
    ):
        with refused(message):
            check_recipe(path_of(folder, "0:0", "1:1", "0:1", **fields))
    scaled = path_of(folder, "0:0", "1:1", flow={"scales": [0.5, 1.0], "scale_target": "mlp_delta"})
    with refused(r"scales\[0\]: 0.5 multiplies pictures as well as words", PathError):
        Folded(open_recipe(scaled))
