"""Alignments of pieces as alignments of words."""

import numpy as np

from bmscale.inference.alignment import Alignment


def pieces(text: str) -> list[str]:
    return text.replace("_", "\u2581").split()


def test_pieces_become_words():
    source = pieces("_The _teach er _does n ' t _work .")
    target = pieces("_Der _Lehr er _arbeit et _nicht , _ <0xC3> <0xB6> _ 日 .")
    weights = np.arange(len(target) * len(source)).reshape(len(target), -1) / 1000
    words = Alignment(source, target, weights).words()
    assert words.source == ["The", "teacher", "doesn't", "work", "."]
    assert words.target == ["Der", "Lehrer", "arbeitet", "nicht", ",", "ö", "日", "."]
    assert words.weights.shape == (8, 5)
    np.testing.assert_allclose(words.weights[1, 1], weights[1:3, 1:3].sum(axis=1).mean())
    np.testing.assert_allclose(words.weights[1, 2], weights[1:3, 3:7].sum(axis=1).mean())
    np.testing.assert_allclose(words.weights[:, 0], [weights[0, 0], *words.weights[1:, 0]])
    # Nothing is lost: what a row gives to all of its source is the mean of what its pieces give.
    np.testing.assert_allclose(words.weights[5].sum(), weights[7:10].sum(axis=1).mean())


def test_languages_without_spaces_keep_their_pieces():
    source, target = pieces("<2de> _ 犬 が <0xE9> <0xB1> <0xBB> 。"), pieces("_ein _Hund")
    weights = np.full((2, 8), 0.125)
    words = Alignment(source, target, weights).words(source_spaces=False, tags=1)
    assert words.source == ["犬", "が", "鱻", "。"]
    np.testing.assert_allclose(words.weights, [[0.25, 0.125, 0.375, 0.125]] * 2)


def test_nothing_to_align():
    words = Alignment([], pieces("_a b"), np.zeros((2, 0))).words()
    assert (words.source, words.target, words.weights.shape) == ([], ["ab"], (1, 0))
    words = Alignment(pieces("_a"), [], np.zeros((0, 1))).words(tags=1)
    assert (words.source, words.target, words.weights.shape) == ([], [], (0, 0))
