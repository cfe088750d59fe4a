"""The page in a real browser: by mouse, by keyboard, on a phone; SERVING_SCREENSHOTS=FOLDER keeps its pictures."""

import os
from pathlib import Path

import pytest

from bmscale.deployment.serving.limits import Keys
from bmscale.inference.translator import Translator
from tests.deployment.serving.browser import CHROMIUM, Browser
from tests.deployment.serving.conftest import GREEDY, SENTENCES, served_folders

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def running(en_de, de_en_fr, writer):
    with served_folders(en_de, de_en_fr, writer) as running:
        yield running


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(shared_browser):
    shared_browser.events.clear()
    return shared_browser


@pytest.fixture(scope="module")
def translator(en_de) -> Translator:
    return Translator.from_pretrained(en_de, device="cpu")


def picture(browser: Browser, name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("SERVING_SCREENSHOTS", tmp_path))
    browser.screenshot(folder / f"{name}.png")
    assert (folder / f"{name}.png").stat().st_size > 5_000


def test_typing_translates(browser, running, translator, tmp_path):
    browser.open(running.url, width=1100, height=900)
    assert browser.focused() == "text"
    assert browser.value("[...document.querySelectorAll('#source option')].map(o => o.text).join()") == (
        "English,German,Detect language"
    )
    browser.value("of('alternatives').value = '2'")
    browser.type(SENTENCES[0])
    browser.until("of('result').textContent !== ''")
    found = translator.translate_n_best([SENTENCES[0]], 3, **{**vars(GREEDY), "beam_size": 3})[0]
    assert browser.value("of('result').textContent") == found[0].text
    others = browser.value("[...document.querySelectorAll('#other-list li')].map(li => li.textContent)")
    assert others == list(dict.fromkeys(one.text for one in found))[1:]
    assert browser.value("/^[0-9.]+ s$/.test(of('state').textContent)")
    assert browser.value("of('count').textContent") == f"{len(SENTENCES[0])} of 50000 characters"
    picture(browser, "desktop", tmp_path)
    assert not browser.complaints()
    assert all(url.startswith((running.url, "data:", "about:")) for url in browser.requested())


def test_by_keyboard_alone(browser, running, translator):
    """Tab goes through everything in order, and every control does its work without a mouse."""
    browser.open(running.url, width=1100, height=900)
    browser.type(SENTENCES[1])
    browser.press("Enter", ctrl=True)
    browser.until("of('result').textContent !== ''")
    assert browser.value("of('result').textContent") == translator.translate([SENTENCES[1]], **vars(GREEDY))[0]
    order = []
    for _ in range(5):
        browser.press("Tab")
        order.append(browser.focused())
    assert order == ["result", "go", "alternatives", "html", "model"]
    browser.press("Tab", shift=True)
    browser.press(" ")
    assert browser.value("of('html').checked") is True
    browser.value("of('source').focus()")
    browser.press("ArrowDown")
    browser.until("of('source').value === 'de'")
    browser.until("[...of('target').options].map(o => o.value).join() === 'en,fr'")


def test_swapping(browser, running):
    browser.open(running.url, width=1100, height=900)
    browser.type("my goat")
    browser.press("Enter", ctrl=True)
    browser.until("of('result').textContent !== ''")
    result = browser.value("of('result').textContent")
    browser.value("of('swap').click()")
    assert browser.value("[of('source').value, of('target').value, of('text').value]") == ["de", "en", result]


def test_on_a_phone(browser, running, tmp_path):
    browser.open(running.url, width=360, height=740, phone=True)
    browser.type(SENTENCES[0])
    browser.press("Enter", ctrl=True)
    browser.until("/ s$/.test(of('state').textContent)")
    assert browser.value("document.documentElement.scrollWidth") <= 360
    boxes = browser.value("['text', 'result'].map(id => Math.round(of(id).getBoundingClientRect().left))")
    assert boxes[0] == boxes[1]  # one below the other
    low = browser.value(
        "[...document.querySelectorAll('select, button')].filter(e => e.getBoundingClientRect().height < 40)"
        ".map(e => e.id).filter(id => of(id).offsetParent)"
    )
    assert low == []  # a finger finds them
    picture(browser, "phone", tmp_path)


def test_a_mistake_is_shown_and_markup_is_text(browser, running, tmp_path):
    browser.open(running.url, width=1100, height=900)
    browser.value("limit = 10, of('text').value = 'x'.repeat(50001), count(), translate()")
    browser.until("of('state').classList.contains('error')")
    assert "exceeds text limit" in browser.value("of('state').textContent")
    browser.value("of('text').value = '<img src=x onerror=alert(1)>', of('html').checked = true, translate()")
    browser.until("of('result').textContent === '<img src=x onerror=alert(1)>'")
    assert browser.value("document.querySelectorAll('output img').length") == 0


def test_a_language_model_writes(browser, running, tmp_path):
    browser.open(running.url, width=1100, height=1100)
    browser.value("of('prompt').focus()")
    browser.type("the old")
    browser.press("Enter", ctrl=True)
    browser.until("/ s$/.test(of('written-state').textContent)")
    assert browser.value("of('written').textContent").startswith("the old")
    assert len(browser.value("of('written').textContent")) > 10
    picture(browser, "writer", tmp_path)
    assert not browser.complaints()


def test_a_key_is_asked_for(browser, en_de, tmp_path):
    with served_folders(en_de, keys=Keys(["right"])) as running:
        browser.open(running.url, width=1100, height=900)
        assert browser.value("of('key-row').hidden") is False
        browser.value("of('text').value = 'goat', translate()")
        browser.until("/API key/.test(of('state').textContent)")
        browser.value("of('key').value = 'right', translate()")
        browser.until("/ s$/.test(of('state').textContent)")
        browser.call("Page.navigate", url="about:blank")
