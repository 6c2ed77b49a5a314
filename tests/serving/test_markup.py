"""HTML keeps its tags, and only its text is translated."""

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
        ("", ""),
    ],
)
def test_tags_are_kept(html, expected):
    assert upper(html) == expected


def test_a_translation_cannot_add_tags():
    page = Page("<p>one</p>")
    assert page.filled(["<script>"]) == "<p>&lt;script&gt;</p>"
