"""Writes the cards of the demo's models in `model_cards/demo`.

    python website/cards.py                   # the texts again, from the facts beside them
    hf-evomerge demo --out evomerge-demo
    python website/cards.py evomerge-demo     # facts and pictures too, as a push uploads them

The winners and their parents are published to a Hub on loopback for this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_evomerge.demo.quickstart import SPECIALISTS
from hf_evomerge.hub.card import CardFacts, render_card
from hf_evomerge.hub.licenses import ParentLicense, decide_license

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards" / "demo"
PUBLISHED = {"ps": "demo/evolved-ps", "dfs": "demo/evolved-dfs", "hybrid": "demo/evolved"}
# what pages of the documentation show, and whose it is
SHOWN = {"path.png": "dfs", "weights.png": "ps", "fitness.png": "hybrid"}
FACTS = ["config.json", "recipe.yaml", "study.json", "images/*"]
PUBLISH = """
import sys
from pathlib import Path
from hf_evomerge.demo.publish import publish_demo
search, family, name = sys.argv[1:]
publish_demo(Path(search), Path(family), "demo/tiny", name=name)
"""


def publish(search: Path, family: Path, name: str, hub: Any) -> None:
    """Publish a search's winner and its parents to a Hub on loopback, which this process talks to
    from here on."""
    command = [sys.executable, "-c", PUBLISH, str(search), str(family), name]
    subprocess.run(command, env={**os.environ, **hub.environment()}, check=True)
    os.environ.update(hub.environment())
    from warm import read_environment  # of tests/support, where the hub is from

    read_environment()  # huggingface_hub did when it was imported


def published(demo: Path, hub: Any) -> None:
    """Publish the winners of the demo's three searches."""
    for space, name in PUBLISHED.items():
        publish(demo / space, SPECIALISTS, name, hub)


def copy_facts(hub: Any) -> None:
    """Replace the folders of `model_cards/demo`, and three pictures of `docs/images`, by what the
    Hub has of each winner."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    for space, name in PUBLISHED.items():
        folder = CARDS / space
        shutil.rmtree(folder, ignore_errors=True)
        api.snapshot_download(name, allow_patterns=FACTS, local_dir=folder)
        shutil.rmtree(folder / ".cache")
    for picture, space in SHOWN.items():
        shutil.copy(CARDS / space / "images" / picture, ROOT / "docs" / "images" / picture)


def card(space: str) -> str:
    """Render the card of a model from the facts in its folder."""
    facts = CardFacts.of_folder(CARDS / space)
    parents = [ParentLicense(ref.model, "apache-2.0") for ref in facts.recipe.refs]
    return render_card(facts, PUBLISHED[space], decide_license(parents), languages=["ja"])


def main() -> None:
    """Read the options; publish and copy where a demo is given; write the texts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, nargs="?", help="folder of `hf-evomerge demo`")
    demo = parser.parse_args().demo
    if demo is not None:
        sys.path.append(str(ROOT / "tests" / "support"))
        from local_hub import LocalHub

        with TemporaryDirectory() as place, LocalHub(place, user="demo") as hub:
            published(demo, hub)
            copy_facts(hub)
    for space in PUBLISHED:
        (CARDS / space / "README.md").write_text(card(space), encoding="utf-8")


if __name__ == "__main__":
    main()
