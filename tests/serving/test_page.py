"""The page in a real browser."""

import os
import re
from importlib import resources

import pytest
from browser import Browser, find_chromium

PAGE = resources.files("lcm_cli.serving") / "page"
TEXT = (
    "Tom lives in a small village. He has a dog and two cats. One day it was raining.\n\n"
    "The spokesman denied on 14 March 2023 that 37 members had embezzled 2.5 million dollars. "
    "The dog is happy."
)


@pytest.fixture
def browser(tmp_path):
    program = find_chromium()
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("there is no Chromium here")
    assert program, "install it: apt-get install chromium"
    browser = Browser(program, tmp_path)
    yield browser
    browser.close()


def test_the_page_is_small_and_loads_nothing_from_elsewhere():
    sizes = [len((PAGE / f"page.{kind}").read_bytes()) for kind in ("html", "css", "js")]
    assert sum(sizes) < 30_000
    html = (PAGE / "page.html").read_text("utf-8")
    assert not re.search(r"https?://|\sstyle=|\son\w+=", html) and "<title>" in html


@pytest.mark.slow
def test_reading_a_document(server, browser):
    browser.resize(1400, 1000)
    browser.open(server.url)
    browser.until("document.body && 'ready' in document.body.dataset")
    assert browser.run("getComputedStyle(document.getElementById('summary')).display") == "none"
    # By keyboard alone: the text, the language from the list, and the button.
    browser.run("document.getElementById('text').focus()")
    browser.type(TEXT)
    browser.run("document.getElementById('to').focus()")
    browser.type("fren")
    assert browser.run("document.querySelectorAll('#to-list [role=option]').length") == 1
    assert browser.run("document.getElementById('to').ariaExpanded") == "true"
    browser.press("Enter")
    assert browser.run("document.getElementById('to').value") == "French"
    browser.press("Tab")
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "go"
    browser.press("Enter")
    browser.until("document.getElementById('live').textContent.startsWith('Translated')")
    assert browser.run("document.getElementById('live').textContent").startswith(
        "Translated 5 sentences"
    )
    pairs = browser.run("[...document.querySelectorAll('.pair')].map(p => p.innerText)")
    assert len(pairs) == 5 and "Tom vit" in pairs[0]
    assert re.search(r"Check this: .*missing: .*2023", pairs[3])
    assert browser.run("document.querySelectorAll('.pair mark.doubtful').length") >= 1
    # The source of a sentence lights up with focus, and its description names it.
    browser.run("document.querySelector('#summary-list button').focus()")
    described = browser.run(
        "document.getElementById(document.activeElement.getAttribute('aria-describedby')).innerText"
    )
    lit = browser.run("[...document.querySelectorAll('.lit .source')].map(p => p.innerText)")
    assert lit == [described]
    browser.run("document.activeElement.blur()")
    assert browser.run("document.querySelectorAll('.lit').length") == 0
    # Nothing overflows, down to a small phone.
    for width in (1400, 800, 360):
        browser.resize(width, 800, dark=width == 360)
        assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.errors == []
    assert {url for url in browser.requested if not url.startswith(server.url)} == set()


@pytest.mark.slow
def test_errors_and_the_key(serve, browser):
    with serve(key="secret") as server:
        browser.open(server.url)
        browser.until("document.body && 'ready' in document.body.dataset")
        submit = "document.getElementById('form').requestSubmit()"
        error = "document.getElementById('error').textContent"
        browser.run(submit)
        assert browser.run(error).startswith("There is no text yet")
        browser.run("document.getElementById('text').value = 'The cat sleeps. It is cold.'")
        browser.run(submit)
        browser.until(f"{error}.includes('API key')")
        assert browser.run("document.activeElement.id") == "key"
        browser.type("secret")
        browser.run(submit)
        browser.until("document.getElementById('live').textContent.startsWith('Summary of 2')")
        assert browser.run("document.getElementById('error').hidden")
    browser.run(submit)
    browser.until(f"{error}.includes('cannot be reached')")
