"""HTML in pieces: joined they are the document, text is text, and nothing takes long."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmscale.deployment.serving.markup import markup_of, split_markup, text_of


def texts(document: str) -> list[str]:
    return [piece for is_text, piece in split_markup(document) if is_text]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("plain", ["plain"]),
        ("<p>one <b>two</b> three</p>", ["one ", "two", " three"]),
        ('<a title="a > b" href=\'x"y\'>link</a>', ["link"]),
        ("<!-- no <b>text</b> -->yes<!DOCTYPE html><?php no ?>", ["yes"]),
        ("<script>if (a < b) { '</p>' }</script>yes<style>p > b {}</style>", ["yes"]),
        ("<pre>kept <b>too</b></pre> text <code>x</code>", [" text "]),
        ('<p translate="no">Brand <i>x</i></p> text', [" text"]),
        ('<p class="a notranslate">Brand</p>text<br translate="no">more', ["text", "more"]),
        ("5 < 6 and 7 > 6", ["5 < 6 and 7 > 6"]),
        ("open <b", ["open "]),
        ("open <b class='x>y", ["open "]),
        ("<!-- open", []),
        ("<code>never closed <p>x</p>", []),
        ("<img src=x>text<IMG src=y/>more", ["text", "more"]),
        ("<div translate=no>a<div>b</div>c</div>d", ["d"]),
        ("", []),
        ("<a title=it's>link</a> more <b>x's</b>", ["link", " more ", "x's"]),
        ("<!-->a<!--->b<!-- x --!>c<!-- - -- > -->d", ["a", "b", "c", "d"]),
        ('<p TRANSLATE="No">x</p>y', ["y"]),
        ("<a / b / translate = NO >z</a>y", ["y"]),
        ('<p data-translate="no">x</p>y', ["x", "y"]),
        ("<p title='translate=\"no\"'>x</p>y", ["x", "y"]),
        ("<p translate=no translate=yes>x</p><p translate=yes translate=no>y</p>", ["y"]),
        ("<p class=notranslate>x</p>y", ["y"]),
        ("<p class='a notranslated x-notranslate'>x</p>y", ["x", "y"]),
        ("<a b='x'class=\"a notranslate\">z</a>y", ["y"]),
        ("<pre/>x</pre>y<code a/>x</code>z", ["y", "z"]),
        ("<svg/>y<svg a=b/>z</svg>w<math/>v", ["y", "w", "v"]),
        ("<iframe><b>x</b></iframe>y<xmp><p></xmp>z", ["y", "z"]),
        ("<textarea></textareax></TextArea >y<plaintext>a</plaintext>b", ["y"]),
        ("<title>a <b</title>c", ["a <b", "c"]),
        ("</>x</ y>z</", ["x", "z</"]),
        ("<a =x='>'>y<a b= >x<a b==c>w", ["y", "x", "w"]),
    ],
)
def test_what_is_text(document, expected):
    assert texts(document) == expected


@given(st.text(alphabet="<>/!-'\"ab pre=\n&;\xa0"))
def test_nothing_is_lost(document):
    assert "".join(piece for _, piece in split_markup(document)) == document


@pytest.mark.parametrize(
    "unit",
    [
        "<",
        "<a ",
        "<a '",
        '<a "',
        "<!--",
        "</",
        "<pre>",
        "<script>",
        "<script></",
        "<a b='>",
        "<a =",
        "<a b ",
        "<a/",
        "<a   ",
        "<title></titl",
        "<iframe></",
    ],
)
def test_hostile_documents_are_quick(unit):
    began = time.process_time()
    split_markup(unit * (50_000 // len(unit)))
    assert time.process_time() - began < 2


def test_entities_are_characters_and_a_translation_opens_no_tag():
    assert text_of("A &amp; B &lt;x&gt; &#252;") == "A & B <x> ü"


def test_numbers_of_characters_that_python_would_not_read():
    assert text_of(f"&#{'9' * 5000};a") == "\ufffda"
    assert text_of(f"&#{'0' * 5000}65;&#{'0' * 9}66 &#;") == "AB &#;"
    tag = f'<p title="&#{"9" * 5000};">'
    assert split_markup(tag + "a") == [(False, tag), (True, "a")]
    assert markup_of("<script> & ü") == "&lt;script&gt; &amp; ü"
