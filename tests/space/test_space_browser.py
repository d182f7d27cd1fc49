"""The page in a real browser: every tab, an answer, an edit, the replay, errors, a phone, and two
visitors side by side."""

import re
import shutil
import time
from functools import wraps
from pathlib import Path
from threading import Event

import pytest
from edits import Route
from served import greedy

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
# waits until what it says is so: after a press, nothing on the page is read at once
expect = playwright.expect
CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH"
)
SECONDS = 30  # before what is waited for counts as missing: a busy machine takes its time
SHOWN = {  # what is there once a tab is
    "Try": "#ev-prompt:visible",
    "Path": "#ev-path svg:visible",
    "Beat evolution": "#ev-edit svg:visible",
    "Evolution": "#ev-fitness svg:visible",
    "Recipe": "#ev-recipe:visible",
}


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests."""
    expect.set_options(timeout=SECONDS * 1000)
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def slow(monkeypatch, served):
    """Makes every token take as long as the number in it says, and no answer end by itself; at the
    end, nobody waits."""
    import models
    from transformers import StoppingCriteriaList

    plain = StoppingCriteriaList.__call__
    greedily = models.greedy
    seconds = [1.0]

    def call(self, *arguments, **named):
        begin = time.monotonic()
        while time.monotonic() - begin < seconds[0]:
            time.sleep(0.01)
        return plain(self, *arguments, **named)

    def endless(*arguments):
        config = greedily(*arguments)
        config.eos_token_id = None
        return config

    monkeypatch.setattr(StoppingCriteriaList, "__call__", call)
    monkeypatch.setattr(models, "greedy", endless)
    yield seconds
    seconds[0] = 0.0
    while served.blocks._queue.event_queue_per_concurrency_id["model"].queue:
        time.sleep(0.1)


@pytest.fixture
def visit(browser, served):
    """Opens the page as a new visitor; what the page complains of in the console fails the test."""
    contexts = []
    complaints = []

    def open_page(url=served.url, wait=True, **options):
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        if wait:
            page.wait_for_selector("#ev-status .ev-ready, #ev-status .ev-error")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def _at(page, selector):
    """Expect something of a part of the page."""
    return expect(page.locator(selector))


def _tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def _prompt(page, text):
    """Write a prompt under Try, and go to the tab for changes."""
    _tab(page, "Try")
    page.fill("#ev-prompt textarea", text)
    _tab(page, "Beat evolution")
    _at(page, "#ev-problem").to_contain_text(text[:5])


def _recipe_has(page, text):
    """Wait until the recipe that is offered for download has this."""
    script = """text => {
        const link = document.querySelector('#ev-share a[download]');
        return link && decodeURIComponent(link.href).includes(text);
    }"""
    page.wait_for_function(script, arg=text)


def _begins(text):
    """What `expect` takes for a text that begins like this."""
    return re.compile(rf"^\s*{re.escape(text)}")


def _wait_for_changed(page, answer):
    """Wait until the changed path's answer is this one; answers of edits on the way may come
    before."""
    script = """answer => {
        const shown = document.querySelector('#ev-answers2 .ev-card.ev-done:nth-child(2) .ev-answer');
        return shown && shown.innerText.trim() === answer;
    }"""  # noqa: E501
    page.wait_for_function(
        script, arg=answer, timeout=120_000
    )  # another visitor's edit may be scored first


def test_a_visitor_asks_and_compares(visit, served, dfs, tiny):
    """An example, asked of all four models: each one's own answer, marked, with what it solved;
    time and speed are in a tip."""
    page = visit()
    prompt = served.show.published.examples[0].prompt
    page.locator("#ev-samples button").first.click()
    page.wait_for_function(
        "text => document.querySelector('#ev-prompt textarea').value === text", arg=prompt
    )
    _at(page, "#ev-ask").to_have_text("Ask all four")
    page.click("#ev-ask")
    for place, folder in enumerate((dfs, tiny / "a", tiny / "b", tiny / "base"), 1):
        answer = page.locator(f"#ev-answers .ev-card.ev-done:nth-child({place}) .ev-answer")
        expect(answer).to_have_text(greedy(folder, prompt, 64))
    first = page.locator("#ev-answers .ev-card").first
    expect(first).to_contain_text("right")
    expect(first).to_contain_text(re.compile(r"\d+ of \d+ unseen problems"))
    _at(first, ".ev-more").to_have_attribute(
        "data-tip", re.compile(r"\d+ tokens? in [\d.]+ s, [\d.]+ a second")
    )
    _at(page, "#ev-stop").to_be_hidden()
    page.click("#ev-options button.label-wrap")
    page.get_by_label("b", exact=True).uncheck()
    _at(page, "#ev-ask").to_have_text("Ask all three")
    page.click("#ev-ask")
    _at(page, "#ev-answers .ev-card.ev-unasked").to_contain_text("not asked")
    page.click("#ev-another")
    other = served.show.published.examples[1].prompt
    page.wait_for_function(
        "text => document.querySelector('#ev-prompt textarea').value === text", arg=other
    )
    _tab(page, "Recipe")
    _at(page, "#ev-recipe").to_contain_text("sources:")


@pytest.mark.slow
def test_an_edit_changes_the_answer_at_once(visit, served, dfs):
    """Press a hop, drop it, repeat one, scale one: picture, recipe and answer follow; undo and
    reset bring the path back."""
    page = visit()
    path = list(served.show.published.path)
    scales = list(served.show.published.scales)
    prompt = served.show.published.examples[1].prompt
    _prompt(page, prompt)
    page.locator("#ev-edit [data-hop='1']:visible").click()
    page.wait_for_selector("#ev-edit .ev-selected[data-hop='1']:visible")
    page.click("#ev-drop")
    page.wait_for_selector("#ev-said >> text=is dropped")
    dropped = [path[:1] + path[2:], scales[:1] + scales[2:]]
    _wait_for_changed(page, greedy(dfs, prompt, 64, *dropped))
    page.click("#ev-undo")
    page.wait_for_selector("#ev-said >> text=as published")
    page.locator("#ev-edit [data-hop='0']:visible").click()
    page.wait_for_selector("#ev-edit .ev-selected[data-hop='0']:visible")
    box = page.locator("#ev-scale input[type=number]")
    box.fill("-1.2")
    page.wait_for_selector("#ev-said >> text=has scale")
    box.fill("-1.25")
    box.press("Enter")
    page.wait_for_selector("#ev-said >> text=has scale")
    page.wait_for_selector("#ev-edit .ev-negative:visible")
    _recipe_has(page, "-1.25")
    _wait_for_changed(page, greedy(dfs, prompt, 64, path, [-1.25, *scales[1:]]))
    page.click("#ev-undo")
    page.wait_for_selector("#ev-said >> text=as published")
    page.click("#ev-repeat")
    page.wait_for_selector("#ev-said >> text=runs twice")
    box.fill("0.5")
    _recipe_has(page, ", 0.5")
    page.click("#ev-reset")
    page.wait_for_selector("#ev-said >> text=as published")


@pytest.mark.slow
def test_the_replay_walks_through_the_moments(visit, monkeypatch):
    """It plays when the tab is opened, from the first moment to the published model; the slider
    shows any of them."""
    import actions

    monkeypatch.setattr(actions, "FRAME_SECONDS", 6)  # a busy browser draws two frames at once
    page = visit()
    _at(page, "#ev-pause").to_be_hidden()
    _tab(page, "Evolution")
    best = page.locator("#ev-best")
    shown = page.locator("#ev-film svg.ev-svg:visible")
    expect(shown).to_have_attribute("aria-label", re.compile("; 1 is shown"))
    _at(page, "#ev-pause").to_be_visible()
    best.locator("text=The published model").wait_for()
    _at(page, "#ev-pause").to_be_hidden()
    slider = page.locator("#ev-moment input[type=range]")
    slider.focus()
    slider.press("Home")
    expect(shown).to_have_attribute("aria-label", re.compile("; 1 is shown"))
    expect(best.locator("svg:visible .ev-hop").first).to_be_visible()


@pytest.mark.slow
def test_pictures_answer_to_mouse_keyboard_and_finger(visit):
    """Hover, arrow keys and a tap show what a mark means; Enter chooses a hop and keeps the
    focus."""
    page = visit()
    _tab(page, "Path")
    page.locator("#ev-path .ev-hop:visible").nth(1).hover()
    tip = page.locator(".ev-tip")
    expect(tip).to_have_text(_begins("Hop 2:"))
    page.locator("#ev-path svg:visible").focus()
    page.keyboard.press("ArrowRight")
    expect(tip).to_have_text(_begins("Hop 1:"))
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    _tab(page, "Beat evolution")
    page.locator("#ev-edit svg:visible").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ev-edit .ev-selected[data-hop='1']:visible")
    page.wait_for_function("document.activeElement.dataset.hop === '1'")
    phone = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    _tab(phone, "Path")
    phone.locator("#ev-path .ev-hop:visible").nth(1).tap()
    phone.wait_for_timeout(300)  # what follows a tap must not hide the words again
    _at(phone, ".ev-tip").to_be_visible()
    _at(phone, ".ev-tip").to_have_text(_begins("Hop 2:"))


@pytest.mark.slow
def test_answers_are_there_before_the_first_click(visit, served):
    """Every model's answer to the example that the page opens with, and what it solved, above the
    fold with Ask."""
    phone = {"width": 390, "height": 844}
    laptop = {"width": 1280, "height": 720}
    page = visit(viewport=phone)
    for size in (phone, laptop):
        page.set_viewport_size(size)
        known = page.locator("#ev-answers .ev-known")
        expect(known).to_have_count(4)
        expect(known.first.locator(".ev-more")).to_have_attribute(
            "data-tip", re.compile("answered in advance")
        )
        for what in ("#ev-ask", "#ev-answers .ev-known >> nth=0"):
            box = page.locator(what).bounding_box()
            assert box["y"] + box["height"] <= size["height"], what
    page.click("#ev-options button.label-wrap")
    _at(page, "#ev-tokens input[type=range]").to_have_attribute("max", "47")
    _tab(page, "Beat evolution")
    _at(page, "#ev-answers2 .ev-known").to_contain_text("as published")
    page.click("#ev-drop")
    page.wait_for_selector("#ev-answers2 .ev-done:nth-child(2)")
    for what in (
        "#ev-edit",
        "#ev-reset",
        "#ev-answers2 .ev-card >> nth=0",
        "#ev-answers2 .ev-card >> nth=1",
    ):
        box = page.locator(what).bounding_box()
        assert box["y"] + box["height"] <= laptop["height"], what


@pytest.mark.slow
def test_an_edit_is_shared_and_scored(visit, served, dfs):
    """A link opens the page with the edit and its answer; the score says how many examples it gets
    right."""
    page = visit()
    path = list(served.show.published.path)
    scales = list(served.show.published.scales)
    _tab(page, "Beat evolution")
    page.click("#ev-drop")
    page.wait_for_selector("#ev-said >> text=is dropped")
    href = page.locator("#ev-share a.ev-copy").get_attribute("href")
    there = visit(f"{served.url}{href}")
    there.wait_for_selector("#ev-said >> text=is dropped")
    _at(there, "#ev-scored").to_contain_text("You")
    _wait_for_changed(
        there, greedy(dfs, served.show.published.examples[0].prompt, 64, path[1:], scales[1:])
    )
    total = len(served.show.published.examples)  # scored without a press: the model is small
    there.wait_for_selector(f"#ev-scored >> text=of {total} unseen problems")
    _at(there, "#ev-scored .ev-theirs b").to_have_text(re.compile(f"^[1-{total}]$"))
    there.click("#ev-reset")
    _at(there, "#ev-scored").to_be_empty()
    broken = visit(f"{served.url}?edit=nonsense")
    broken.wait_for_selector("#ev-said .ev-error >> text=cannot be read")


@pytest.mark.slow
def test_a_link_is_answered_though_the_page_is_slow(visit, served, monkeypatch):
    """The edit of a link is answered and scored though it comes before the page has heard that
    nothing was changed at first."""
    first = next(each for each in served.blocks.fns.values() if each.name == "begin_edit")
    begin = first.fn

    @wraps(begin)
    def slowly(count, request):
        if not count:
            time.sleep(3)
        return begin(count, request)

    monkeypatch.setattr(first, "fn", slowly)
    path = list(served.show.published.path)
    scales = list(served.show.published.scales)
    page = visit(f"{served.url}{Route(tuple(path[1:]), tuple(scales[1:])).link}")
    total = len(served.show.published.examples)
    page.wait_for_selector(f"#ev-scored >> text=of {total} unseen problems")


@pytest.mark.slow
@pytest.mark.parametrize(("theme", "wide"), [("light", 1280), ("dark", 820)])
def test_everybody_can_use_it(visit, served, theme, wide):
    """Every tab has its part and none is wider than a phone; axe finds nothing, there or on a wider
    screen, in both themes."""
    axe = pytest.importorskip(
        "axe_playwright_python", reason="axe-playwright-python brings axe-core"
    )
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = visit(f"{served.url}?__theme={theme}", reduced_motion="reduce", **phone)
    expect(page.locator("#ev-answers .ev-known").first).to_be_visible()
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    for name, part in SHOWN.items():
        _tab(page, name)
        for width in (390, wide):
            page.set_viewport_size({"width": width, "height": 844})
            page.locator(part).first.wait_for()
            page.wait_for_function(f"document.documentElement.scrollWidth <= {width}")
            found = page.evaluate(
                "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})"
            )
            assert not [
                (one["id"], one["nodes"][0]["html"][:200]) for one in found["violations"]
            ], (name, width)
    for part, said in (
        ("recipe", "sources:"),
        ("commands", "from_pretrained"),
        ("citation", "2403.13187"),
    ):
        _at(page, f"#ev-{part}").to_contain_text(said)
    red = (
        "Number(getComputedStyle(document.querySelector('.ev-heading h1')).color.match(/\\d+/)[0])"
    )
    assert page.evaluate(f"{red} > 127") == (theme == "dark")


@pytest.mark.slow
def test_an_answer_can_be_stopped(visit, served, slow):
    """Stop ends the answer that is being written and keeps what is there; the next one ends when
    its page is closed."""
    page = visit()
    page.fill("#ev-prompt textarea", "w1 w2")
    page.click("#ev-ask")
    page.wait_for_selector("#ev-answers .ev-writing")
    page.click("#ev-stop")
    page.wait_for_selector("#ev-answers .ev-stopped")
    page.click("#ev-ask")
    page.wait_for_selector("#ev-answers .ev-writing")
    page.close()
    assert served.show.host._pass.acquire(timeout=20), "44 tokens would take 44 seconds"
    served.show.host._pass.release()


@pytest.mark.slow
def test_the_page_opens_while_the_queue_is_full(visit, served, slow):
    """Whoever comes while the queue is full sees the whole page, and is told why no question and no
    edit is taken."""
    slow[0] = 20.0
    served.fill_queue()
    page = visit()
    page.wait_for_selector("#ev-heading >> text=Evolved from")
    page.fill("#ev-prompt textarea", "w1 w2")
    page.click("#ev-ask")
    page.wait_for_selector("#ev-answers .ev-error >> text=Too many are waiting")
    _tab(page, "Beat evolution")
    page.click("#ev-repeat")
    page.wait_for_selector("#ev-said .ev-error >> text=Too many are waiting")
    _tab(page, "Evolution")
    page.locator("#ev-best >> text=The published model").wait_for()
    page.locator("#ev-moment input[type=range]").press("Home")
    _at(page, "#ev-film svg.ev-svg:visible").to_have_attribute(
        "aria-label", re.compile("; 1 is shown")
    )


@pytest.mark.slow
def test_a_new_question_ends_the_old_one(visit, served, slow):
    """Who edits on while an answer is written does not wait for it: the newest edit's answer is
    what is shown."""
    page = visit()
    _prompt(page, served.show.published.examples[1].prompt)
    page.click("#ev-repeat")
    page.wait_for_selector("#ev-answers2 .ev-writing")
    page.click("#ev-repeat")
    hops = len(served.show.published.path) + 2
    page.wait_for_function(
        f"document.querySelectorAll('#ev-edit .ev-wide [data-hop]').length === {hops}"
    )
    slow[0] = 0.0
    page.locator(f"#ev-answers2 .ev-done:nth-child(2) .ev-role >> text='{hops} hops'").wait_for()


@pytest.mark.slow
def test_the_page_is_there_before_the_model(visit, serve, dfs, monkeypatch):
    """While the weights load, everything but the answers is shown, with progress; an answer waits
    and then comes."""
    import loading

    plain = loading.load
    gate = Event()
    monkeypatch.setattr(
        loading, "load", lambda *arguments, **named: gate.wait() and plain(*arguments, **named)
    )
    late = serve(dfs)
    page = visit(late.url, wait=False)
    page.wait_for_selector("#ev-status >> text=Loading the weights")
    _tab(page, "Path")
    page.wait_for_selector("#ev-path svg:visible")
    _tab(page, "Try")
    page.fill("#ev-prompt textarea", "w1 w2")
    page.click("#ev-ask")
    page.wait_for_selector("#ev-answers .ev-loading")
    gate.set()
    page.wait_for_selector("#ev-answers .ev-done")
    page.wait_for_selector("#ev-status .ev-ready")


@pytest.mark.slow
def test_other_models_have_their_page(visit, serve, ps, broken):
    """A merge of weights shows its bars, and whatever its address says, nothing to edit; no model
    says what to set, a broken one what is wrong."""
    page = visit(f'{serve(ps).url}?edit=[[["all layers",[1,0]]]]')
    expect(page.locator("#ev-answers .ev-known").first).to_be_visible()
    expect(page.get_by_role("tab")).to_have_text(["Try", "Weights", "Evolution", "Recipe"])
    _tab(page, "Weights")
    page.wait_for_selector("#ev-path .ev-cell:visible")
    empty = visit(serve("").url)
    empty.wait_for_selector("#ev-status .ev-error >> text=EVOMERGE_MODEL")
    folder = broken(study__json="{")
    (folder / "model.safetensors").write_bytes(b"\0" * 64)
    wrong = visit(serve(folder).url)
    wrong.wait_for_selector("#ev-status .ev-error >> text=not a safetensors file")
    wrong.wait_for_selector("#ev-heading .ev-warning >> text=study.json cannot be read")
