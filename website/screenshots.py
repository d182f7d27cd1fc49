"""Takes the pictures of the Space and of a card that the documentation shows, from the models of a
demo.

    hf-evomerge demo --out evomerge-demo
    python website/screenshots.py evomerge-demo                  # writes docs/images
    # what axe finds on every tab
    python website/screenshots.py evomerge-demo/ps evomerge-demo/dfs --axe
    # the same, with pictures to look at
    python website/screenshots.py evomerge-demo/ps --look build/look
    # the page of a merge that sees
    python benchmarks/demo_seeds.py --out demo-seeds --seeds 0 --vlm
    python website/screenshots.py demo-seeds --seeing

It needs chromium, a font with Japanese letters where chromium finds it, and axe-playwright-python
for `--axe` and `--look`, which go through three widths, light and dark.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from cards import publish, published

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
TABS = {
    "try": ("Try", "#ev-answers .ev-known"),
    "path": (re.compile("^(Path|Weights)$"), "#ev-path svg:visible"),
    "change": (re.compile("^(Beat evolution|Change it)$"), "#ev-edit svg:visible"),
    "evolution": ("Evolution", "#ev-fitness svg:visible"),
    "recipe": ("Recipe", "#ev-recipe:visible"),
}
WIDTHS = (390, 820, 1280)
THEMES = ("light", "dark")
RULES = "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})"


def serve(model: str | Path) -> str:
    """Start the Space of a search's or a model's folder, or of a repository; gives its address."""
    sys.path.insert(0, str(ROOT / "space_app"))
    import app

    from hf_evomerge.hub.space import with_record

    if Path(model).is_dir():
        model = with_record(
            Path(model), Path(mkdtemp(prefix="evomerge-screenshots-")) / Path(model).resolve().name
        )
    blocks, show = app.serve(
        str(model), server_name="127.0.0.1", prevent_thread_lock=True, quiet=True
    )
    show.ready_for.wait(600)
    return str(blocks.local_url)


def opened(browser: Any, url: str, tab: str, *, width: int, theme: str) -> Any:
    """A page that shows a tab."""
    page = browser.new_page(viewport={"width": width, "height": 900}, reduced_motion="reduce")
    page.set_default_timeout(300_000)  # a busy machine takes its time
    page.goto(f"{url}?__theme={theme}")
    page.wait_for_selector("#ev-status .ev-ready")
    turn_to(page, tab)
    return page


def handle(page: Any, tab: str) -> Any:
    """What is pressed for a tab of a page."""
    name, _ = TABS[tab]
    return page.get_by_role("tab", name=name, exact=isinstance(name, str))


def turn_to(page: Any, tab: str) -> None:
    """Another tab of a page."""
    handle(page, tab).click()
    page.wait_for_selector(TABS[tab][1])
    page.wait_for_timeout(700)


def save(page: Any, file: Path) -> None:
    """The whole page as a small PNG."""
    import numpy as np
    from PIL import Image

    page.mouse.move(0, 0)
    page.screenshot(path=file, full_page=True)
    with Image.open(file) as picture:
        shown = picture.convert("RGB")
    pixels = np.asarray(shown, np.int32)
    colours, which, counts = np.unique(
        pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    areas = colours[
        counts.argsort()[::-1][:160]
    ]  # keep their colour; thin lines and letters take the nearest there is
    others = np.array(
        shown.quantize(96, Image.Quantize.MAXCOVERAGE).getpalette(), np.int32
    ).reshape(-1, 3)
    palette = np.concatenate([areas, others])[:256]
    nearest = ((colours[:, None] - palette) ** 2).sum(axis=-1).argmin(axis=1)
    small = Image.fromarray(nearest[which].reshape(pixels.shape[:2]).astype(np.uint8))
    small.putpalette(palette.astype(np.uint8).tobytes())
    small.save(file, optimize=True)


def look(browser: Any, folders: list[Path], out: Path | None) -> int:
    """Every tab at every width and in both themes; says what axe finds, and how much that is."""
    import axe_playwright_python

    axe = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    total = 0
    for folder in folders:
        page = opened(browser, serve(folder), "try", width=WIDTHS[0], theme="light")
        page.evaluate(axe)
        tabs = [tab for tab in TABS if handle(page, tab).count()]
        for tab, width, theme in product(tabs, WIDTHS, THEMES):
            page.evaluate(f"document.body.classList.toggle('dark', {str(theme == 'dark').lower()})")
            page.set_viewport_size({"width": width, "height": 900})
            turn_to(page, tab)
            place = f"{folder.name}-{tab}-{theme}-{width}"
            if out is not None:
                save(page, out / f"{place}.png")
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            said = [
                f"{found['id']}: {found['nodes'][0]['html'][:160]}"
                for found in page.evaluate(RULES)["violations"]
            ]
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = false)")
            if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
                said.append(f"the page is {wide} pixels wide")
            print("\n    ".join([f"{place}: {len(said)} violations", *said]), flush=True)
            total += len(said)
        page.close()
    return total


def drop_a_hop(page: Any) -> None:
    """On the tab for changes, leave out the last hop but one, and wait for the answer."""
    page.locator("#ev-edit [data-hop]:visible").nth(-2).click()
    page.wait_for_timeout(500)
    page.click("#ev-drop")
    page.wait_for_selector("#ev-answers2 .ev-done:nth-child(2)")
    page.wait_for_selector("#ev-scored >> text=/of \\d+ unseen/")


def seeing(browser: Any, seeds: Path, hub: Any) -> None:
    """The picture of a merge that sees, of the first family with pictures."""
    publish(seeds / "vlm-0" / "ps", seeds / "family-0", "demo/evolved-seeing", hub)
    page = opened(browser, serve("demo/evolved-seeing"), "try", width=1030, theme="light")
    save(page, IMAGES / "space-seeing.png")
    page.close()


def pictures(browser: Any) -> None:
    """The pictures of docs/space.md and of the README."""
    dfs = serve("demo/evolved-dfs")
    ps = serve("demo/evolved-ps")
    shots: Iterator[tuple[str, str, str, Callable[[Any], None] | None]] = iter(
        [
            ("space-try", dfs, "try", None),
            ("space-path", dfs, "path", None),
            ("space-change", dfs, "change", drop_a_hop),
            ("space-evolution", ps, "evolution", None),
            ("space-recipe", dfs, "recipe", None),
        ]
    )
    for name, url, tab, act in shots:
        for theme in THEMES:
            page = opened(browser, url, tab, width=1030, theme=theme)
            if act is not None:
                act(page)
            save(page, IMAGES / (f"{name}.png" if theme == "light" else f"{name}-dark.png"))
            page.close()


CARD_STYLE = """body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; width: 820px; margin: 24px 32px; }
h1, h2 { line-height: 1.25; } h2 { border-bottom: 1px solid #e5e7eb; padding-bottom: 4px; } img { max-width: 100%; }
pre, code { font: 13px/1.45 ui-monospace, monospace; background: #f3f4f6; }
pre { padding: 10px 12px; border-radius: 6px; overflow: hidden; }
blockquote { border-left: 4px solid #d1d5db; margin-left: 0; padding-left: 14px; }
table { border-collapse: collapse; font-size: 14px; }
th, td { border: 1px solid #d1d5db; padding: 4px 10px; text-align: left; } a { color: #2563eb; }"""  # noqa: E501


def card(browser: Any) -> None:
    """The card of the demo's DFS model, up to its path, as the Hub shows it."""
    from markdown_it import MarkdownIt

    folder = ROOT / "model_cards" / "demo" / "dfs"
    text = (
        (folder / "README.md")
        .read_text(encoding="utf-8")
        .split("---\n", 2)[2]
        .split("## The search")[0]
    )
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    page = browser.new_page(viewport={"width": 900, "height": 900})
    shown = folder / "shown.html"
    try:
        shown.write_text(f"<meta charset=utf-8><style>{CARD_STYLE}</style>{html}", encoding="utf-8")
        page.goto(shown.as_uri())
        save(page, IMAGES / "card.png")
    finally:
        shown.unlink(missing_ok=True)
        page.close()


def main() -> None:
    """Read the options and take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "demo",
        type=Path,
        nargs="+",
        help="the folder of a demo; with an option, those of searches or models",
    )
    parser.add_argument(
        "--axe",
        action="store_true",
        help="let axe look at all tabs of all models, and take no picture",
    )
    parser.add_argument("--look", type=Path, help="the same, with pictures in this folder")
    parser.add_argument(
        "--seeing",
        action="store_true",
        help="take the picture of a merge that sees alone, from a folder of demo_seeds.py --vlm",
    )
    chosen = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        if chosen.axe or chosen.look:
            if chosen.look:
                chosen.look.mkdir(parents=True, exist_ok=True)
            total = look(browser, chosen.demo, chosen.look)
            print(f"{total} violations in all")
            sys.exit(total > 0)
        else:
            sys.path.append(str(ROOT / "tests" / "support"))
            from local_hub import LocalHub

            with TemporaryDirectory() as place, LocalHub(place, user="demo") as hub:
                if chosen.seeing:
                    seeing(browser, chosen.demo[0], hub)
                else:
                    published(chosen.demo[0], hub)
                    pictures(browser)
                    card(browser)


if __name__ == "__main__":
    main()
