"""HTML keeps its tags, and only its text is translated."""

import time

import pytest

from lcm_cli.serving.markup import Page


def upper(html: str) -> str:
    page = Page(html)
    return page.filled([text.upper() for text in page.texts])


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("plain", "PLAIN"),
        ("<p class='x'>one</p><p>two</p>", "<p class='x'>ONE</p><p>TWO</p>"),
        ("<p>one <b>two</b> three</p>", "<p>ONE TWO THREE</p>"),
        ("<li><a href=/x><b>one two</b></a></li>", "<li><a href=/x><b>ONE TWO</b></a></li>"),
        ("<b>one</b> <b>two</b>", "ONE TWO"),
        ("one<br>two<img src=a.png>", "ONE<br>TWO<img src=a.png>"),
        ("a &lt; b &amp; c", "A &lt; B &amp; C"),
        ("<script>if (a < b) c();</script>x", "<script>if (a < b) c();</script>X"),
        ("<pre>a &lt; b</pre> <code>x</code> y", "<pre>a &lt; b</pre> <code>x</code> Y"),
        ("<p translate=no>one</p><p>two</p>", "<p translate=no>one</p><p>TWO</p>"),
        ("<!doctype html><!-- one --><p>two", "<!doctype html><!-- one --><p>TWO"),
        (" \n<p>\n one\n two </p>\n", " \n<p>\n ONE TWO </p>\n"),
        ("<p>one</b></p>", "<p>ONE</p>"),
        ("<!--[if mso]><p>x</p><![endif]-->one", "<!--[if mso]><p>x</p><![endif]-->ONE"),
        ("<![weird[x]>one<!-- two", "<![weird[x]>ONE&lt;!-- TWO"),
        ("<p>1 < 2 &amp; <b", "<p>1 &lt; 2 &amp; &lt;B"),
        ("<code translate=no>a</b>b</code>c", "<code translate=no>a</b>b</code>C"),
        ("", ""),
    ],
)
def test_tags_are_kept(html, expected):
    assert upper(html) == expected


def test_a_translation_cannot_add_tags():
    page = Page("<p>one</p>")
    assert page.filled(["<script>"]) == "<p>&lt;script&gt;</p>"


@pytest.mark.parametrize("piece", ["<!--", "<b", "<p ", "&", "<pre>", "<![x", "</b>", "<script>"])
@pytest.mark.parametrize("end", ["", ">", "</pre>"])
def test_the_time_is_linear(piece, end):
    start = time.process_time()
    Page("x" + piece * 20_000 + end)
    assert time.process_time() - start < 10


def test_deep_nesting_takes_no_longer():
    start = time.process_time()
    page = Page("<b>" * 20_000 + "one" + "</b>" * 20_000)
    assert page.filled(["two"]) == "<b>" * 10 + "two" + "</b>" * 10
    assert time.process_time() - start < 10
