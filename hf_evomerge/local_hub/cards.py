"""The metadata on top of a README: read, checked as the Hub checks it, and turned into the tags of a repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-
by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-
nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0
wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0
isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0
postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2
llama3 llama3.1 llama3.2 llama3.3 llama4 gemma grok2-community unknown other
"""
LICENSES = frozenset(_LICENSES.split())
RELATIONS = ("adapter", "finetune", "merge", "quantized")
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SDKS = ("gradio", "streamlit", "docker", "static")
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
LANGUAGES = ("code", "multilingual")


def split_card(text: str) -> tuple[str | None, str]:
    """The YAML between the two `---` lines, if there is any, and the text below."""
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|$)(.*)", text, re.DOTALL)
    return (found[1], found[2]) if found else (None, text)


def read_card(data: bytes) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a README; metadata that cannot be read is empty.

    Args:
        data: The file's content.
    """
    block, rest = split_card(data.decode("utf-8", "replace"))
    try:
        card = json.loads(json.dumps(yaml.safe_load(block) if block else {}, default=str))  # JSON has no dates
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):  # no YAML, or not a thing that JSON could say
        card = {}
    return (card if isinstance(card, dict) else {}), rest


@dataclass
class Findings:
    """What is wrong with metadata: errors forbid a commit, warnings do not."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, list[dict[str, str]]]:
        """As the API answers."""
        return {
            "errors": [{"message": message} for message in self.errors],
            "warnings": [{"message": message} for message in self.warnings],
        }


def check_card(text: str, kind: str) -> Findings:
    """Check the metadata of a README.

    Args:
        text: The whole README.
        kind: `model`, `dataset` or `space`.
    """
    findings = Findings()
    block, _ = split_card(text)
    try:
        card = yaml.safe_load(block) if block else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        findings.errors.append(f"invalid YAML: {' '.join(str(error).split())}")
        return findings
    if card is None:
        findings.warnings.append("empty or missing yaml metadata in repo card")
    elif not isinstance(card, dict):
        findings.errors.append("the metadata must be a mapping")
    else:
        findings.errors += [*_check_shared(card), *(_check_space(card) if kind == "space" else _check_model(card, findings))]
    return findings


def _check_shared(card: dict[str, Any]) -> Iterator[str]:
    for key in ("tags", "datasets", "models", "metrics", "language", "base_model", "license"):
        value = card.get(key)
        items = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(item, str) for item in items):
            yield f'"{key}" must be a string or an array of strings'  # `language: [no]` is a boolean to YAML
    if isinstance(card.get("tags"), str):
        yield '"tags" must be an array'
    for name in _texts(card.get("license")):
        if name not in LICENSES:
            yield f'"license" must be one of [{", ".join(sorted(LICENSES))}]'
    for name in _texts(card.get("language")):
        if name not in LANGUAGES and not re.fullmatch("[a-z]{2,3}", name):
            yield (
                f'"language" with value "{name}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code '
                '(two/three letters), or a special value like "code", "multilingual".'
            )
    for key, where in (("base_model", "models"), ("datasets", "datasets"), ("models", "models")):
        for name in _texts(card.get(key)):
            if not REPO_ID.fullmatch(name) or "--" in name or ".." in name:
                yield f'"{key}" with value "{name}" is not valid. Use a {where[:-1]} id from https://hf.co/{where}.'


def _check_model(card: dict[str, Any], findings: Findings) -> Iterator[str]:
    for key in ("pipeline_tag", "library_name", "license_name", "license_link"):
        if card.get(key) is not None and not isinstance(card[key], str):
            yield f'"{key}" must be a string'
    if card.get("base_model_relation") not in (None, *RELATIONS):
        yield f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]'
    if isinstance(card.get("pipeline_tag"), str) and not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", card["pipeline_tag"]):
        yield f'"pipeline_tag" with value "{card["pipeline_tag"]}" is not valid'
    if card.get("license") == "other" and not card.get("license_name"):
        findings.warnings.append('"license_name" is expected where "license" is "other"')
    if card.get("model-index") is not None:
        yield from _check_index(card["model-index"])


def _check_index(index: Any) -> Iterator[str]:
    """The results of evaluations: `model-index[].results[].{task.type, dataset.{name, type}, metrics[].{type, value}}`."""
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for number, model in enumerate(index):
        where = f"model-index[{number}]"
        if not isinstance(model, dict) or not isinstance(model.get("results"), list):
            yield f'"{where}.results" is required and must be an array'
            continue
        if not isinstance(model.get("name"), str):
            yield f'"{where}.name" is required'
        for place, result in enumerate(model["results"]):
            yield from _check_result(result, f"{where}.results[{place}]")


def _check_result(result: Any, where: str) -> Iterator[str]:
    result = result if isinstance(result, dict) else {}
    for path in ("task.type", "dataset.name", "dataset.type"):
        section, key = path.split(".")
        inside = result.get(section)
        if not isinstance(inside, dict) or not isinstance(inside.get(key), str):
            yield f'"{where}.{path}" is required'
    metrics = result.get("metrics")
    if not isinstance(metrics, list):
        yield f'"{where}.metrics" is required and must be an array'
        return
    for number, metric in enumerate(metrics):
        for key in ("type", "value"):
            if not isinstance(metric, dict) or metric.get(key) is None:
                yield f'"{where}.metrics[{number}].{key}" is required'


def _check_space(card: dict[str, Any]) -> Iterator[str]:
    if card.get("sdk") is None:
        yield '"sdk" is required'
    for key, allowed in (("sdk", SDKS), ("colorFrom", COLOURS), ("colorTo", COLOURS)):
        if card.get(key) not in (None, *allowed):
            yield f'"{key}" must be one of [{", ".join(allowed)}]'
    for key in ("title", "emoji", "app_file", "short_description", "sdk_version", "python_version"):
        value = card.get(key)
        if value is not None and not (isinstance(value, str) or (key.endswith("version") and isinstance(value, int | float))):
            yield f'"{key}" must be a string'
    if isinstance(card.get("short_description"), str) and len(card["short_description"]) > 60:
        yield '"short_description" length must be less than or equal to 60 characters long'
    for key in ("pinned", "hf_oauth", "disable_embedding"):
        if card.get(key) is not None and not isinstance(card[key], bool):
            yield f'"{key}" must be a boolean'


def card_tags(card: dict[str, Any], body: str, *, kind: str, config: dict[str, Any], names: list[str]) -> list[str]:
    """The tags that a repository has because of its card and files.

    Args:
        card: The metadata.
        body: The card's text; links to arXiv count.
        kind: `models`, `datasets` or `spaces`.
        config: The model's `config.json`, or nothing.
        names: The paths of its files.
    """
    bases = _texts(card.get("base_model"))
    relation = card.get("base_model_relation") or ("merge" if len(bases) > 1 else "finetune")
    papers = re.findall(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})", body)
    tags = [
        *_texts(card.get("library_name")),
        *(["safetensors"] if any(name.endswith(".safetensors") for name in names) else []),
        *(_texts(config.get("model_type")) if kind == "models" else []),
        *_texts(card.get("pipeline_tag")),
        *_texts(card.get("tags")),
        *(["custom_code"] if config.get("auto_map") else []),
        *_texts(card.get("language")),
        *(f"dataset:{name}" for name in _texts(card.get("datasets"))),
        *(f"arxiv:{paper}" for paper in papers),
        *(f"base_model:{name}" for name in bases),
        *(f"base_model:{relation}:{name}" for name in bases),
        *(f"license:{name}" for name in _texts(card.get("license"))),
        *([str(card["sdk"])] if kind == "spaces" and card.get("sdk") else []),
        "region:us",
    ]
    return list(dict.fromkeys(tags))


def _texts(value: Any) -> list[str]:
    """A value that may be one text or several, as those of them that are texts."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str) and item]
