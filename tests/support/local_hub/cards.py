"""The metadata on top of a README: read, checked as the Hub checks it, and turned into the tags of
a repository."""

import json
import re

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma grok2-community unknown
other
"""  # noqa: E501
LICENSES = frozenset(_LICENSES.split())
SDKS = ("gradio", "streamlit", "docker", "static")
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
LANGUAGES = ("code", "multilingual")
TEXTS = (
    "tags",
    "datasets",
    "models",
    "metrics",
    "language",
    "base_model",
    "license",
    "pipeline_tag",
    "library_name",
)


def front_matter(text):
    """Find the YAML between the two `---` lines at the top of a README; empty where there is
    none."""
    match = REGEX_YAML_BLOCK.match(text)
    return match[2] if match else ""


def read_card(data):
    """Read the metadata in the content of a README; metadata that cannot be read is empty."""
    try:
        card = yaml.safe_load(front_matter(data.decode("utf-8", "replace")))
        card = json.loads(json.dumps(card, default=str))  # JSON has no dates
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


def check_card(text, kind):
    """Check the metadata of a README.

    Args:
        text: The whole README.
        kind: `model`, `dataset` or `space`.

    Returns:
        Errors, which forbid a commit, and warnings, which do not.
    """
    try:
        card = yaml.safe_load(front_matter(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        return [f"invalid YAML: {' '.join(str(error).split())}"], []
    if card is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(card, dict):
        return ["the metadata must be a mapping"], []
    unnamed = card.get("license") == "other" and not card.get("license_name")
    warnings = ['"license_name" is expected where "license" is "other"'] if unnamed else []
    return list(_mistakes(card, kind)), warnings


def _mistakes(card, kind):
    for key in TEXTS:
        if not all(isinstance(item, str) for item in _listed(card.get(key))):
            # `language: [no]` is a boolean to YAML
            yield f'"{key}" must be a string or an array of strings'
    if isinstance(card.get("tags"), str):
        yield '"tags" must be an array'
    for name in _texts(card.get("license")):
        if name not in LICENSES:
            yield f'"license" must be one of [{", ".join(sorted(LICENSES))}]'
    for name in _texts(card.get("language")):
        if name not in LANGUAGES and not re.fullmatch("[a-z]{2,3}", name):
            yield (
                f'"language" with value "{name}" is not valid. It must be an ISO 639-1, '
                "639-2 or 639-3 code "
                '(two/three letters), or a special value like "code", "multilingual".'
            )
    for key, where in (("base_model", "models"), ("datasets", "datasets"), ("models", "models")):
        for name in _texts(card.get(key)):
            if not REPO_ID.fullmatch(name) or "--" in name or ".." in name:
                yield (
                    f'"{key}" with value "{name}" is not valid. Use a {where[:-1]} id from '
                    f"https://hf.co/{where}."
                )
    if kind == "space" and card.get("sdk") not in SDKS:
        yield f'"sdk" must be one of [{", ".join(SDKS)}]'
    if len(str(card.get("short_description", ""))) > 60:
        yield '"short_description" length must be less than or equal to 60 characters long'


def card_tags(card):
    """The tags that a repository has because of its card."""
    bases = _texts(card.get("base_model"))
    relation = card.get("base_model_relation") or ("merge" if len(bases) > 1 else "finetune")
    tags = [
        tag
        for key in ("library_name", "pipeline_tag", "tags", "language", "sdk")
        for tag in _texts(card.get(key))
    ]
    tags += [f"base_model:{name}" for name in bases]
    tags += [f"base_model:{relation}:{name}" for name in bases]
    tags += [f"license:{name}" for name in _texts(card.get("license"))]
    return list(dict.fromkeys(tags))


def _listed(value):
    """Normalise a value or a list to a list; None is an empty one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _texts(value):
    """The strings of a value or a list."""
    return [item for item in _listed(value) if isinstance(item, str) and item]
