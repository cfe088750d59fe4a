"""The page in a real browser: by mouse, by keyboard, on a phone; SERVING_SCREENSHOTS=FOLDER keeps its pictures."""

import os
from pathlib import Path

import numpy as np
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
    assert order == ["result", "go", "alternatives", "align", "html"]
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


def aligned(browser: Browser, text: str) -> None:
    browser.value("of('align').checked = true")
    browser.type(text)
    browser.press("Enter", ctrl=True)
    browser.until("!of('alignment').hidden")


def test_words_are_linked(browser, running, translator, tmp_path):
    """By keyboard: one tab stop a sentence, arrows along the words and to the other side; and as a table."""
    browser.open(running.url, width=1100, height=1000)
    aligned(browser, f"{SENTENCES[0]}\n{SENTENCES[1]}")
    targets = translator.translate(SENTENCES[:2], **vars(GREEDY))
    expected = translator.align_words(SENTENCES[:2], targets)
    rows = browser.value("[...document.querySelectorAll('.words')].map(r => [...r.querySelectorAll('button')]"
                         ".map(b => b.textContent))")  # fmt: skip
    assert rows == [words for one in expected for words in (one.source, one.target)]
    assert browser.value("document.querySelectorAll('.word[tabindex=\"0\"]').length") == 2
    browser.value("of('html').focus()")
    browser.press("Tab")
    assert browser.value("document.activeElement.textContent") == "the"
    browser.press("ArrowRight")
    weights = expected[0].weights[:, 1]
    strongest = int(weights.argmax())
    said = browser.value("of('links').textContent")
    assert said.startswith(f"old: {expected[0].target[strongest]} {round(100 * round(float(weights.max()), 3))} %")
    shades = browser.value("[...document.querySelectorAll('.words')[1].querySelectorAll('button')]"
                           ".map(b => +b.style.getPropertyValue('--weight'))")  # fmt: skip
    assert shades == pytest.approx([weight**0.5 if weight >= 0.05 else 0 for weight in weights], abs=2e-3)
    browser.press("ArrowDown")
    assert browser.value("document.activeElement.textContent") == expected[0].target[strongest]
    assert browser.value("document.activeElement.parentElement.ariaLabel") == "Translation, sentence 1"
    picture(browser, "alignment", tmp_path)
    assert browser.value("document.querySelectorAll('td').length") == 0  # not before it is opened
    browser.value("document.querySelector('details').open = true")
    browser.until("document.querySelector('table') !== null")
    assert browser.value("document.querySelectorAll('table').length") == 1
    cells = browser.value("[...document.querySelectorAll('table')[0].querySelectorAll('tbody tr')]"
                          ".map(r => [...r.querySelectorAll('td')].map(c => c.textContent))")  # fmt: skip
    assert np.array(cells).shape == expected[0].weights.shape
    assert (np.array(cells) != "").tolist() == (expected[0].weights >= 0.05).tolist()
    assert not browser.complaints()


def test_alignments_that_are_not_told(browser, running):
    browser.open(running.url, width=1100, height=900)
    for found, message in (("undefined", "This server does not tell"), ("[null]", "cannot tell"), ("[]", "no words")):
        browser.value(f"showAlignment({found}, {{ section: of('alignment'), links: of('links'), "
                      "sentences: of('sentences') })")  # fmt: skip
        assert message in browser.value("of('sentences').textContent")
    aligned(browser, "<img src=x onerror=alert(1)>")
    assert browser.value("document.querySelectorAll('#alignment img').length") == 0
    browser.value("of('align').checked = false, translate()")
    browser.until("of('alignment').hidden")


def test_alignments_on_a_phone(browser, running, tmp_path):
    browser.open(running.url, width=360, height=740, phone=True)
    aligned(browser, SENTENCES[0])
    browser.value("document.querySelector('details').open = true, document.querySelectorAll('.word')[2].click()")
    browser.until("document.querySelector('table') !== null")
    assert browser.value("document.querySelectorAll('.chosen').length") == 1
    assert browser.value("document.documentElement.scrollWidth") <= 360  # the table scrolls in its frame
    heights = browser.value("[...document.querySelectorAll('.word, summary')].map(e => e.offsetHeight)")
    assert min(heights) >= 40  # a finger finds them
    picture(browser, "alignment-phone", tmp_path)


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
