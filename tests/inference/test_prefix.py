"""A translation begins with its prefix to the letter, whatever else is in the batch, and is free behind it."""

from pathlib import Path

import pytest
import torch

from bmscale.data.tokenizer import EOS, Tokenizer, TokenizerConfig, train_tokenizer
from bmscale.errors import BadInput
from bmscale.inference.likelihood import log_probabilities
from bmscale.inference.prefix import Prefix, Prefixes
from bmscale.inference.search import SearchOptions
from bmscale.inference.torch_backend import n_best_ids
from bmscale.inference.translator import Translator
from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration

TEXT = [
    "the old fisherman rowed across the quiet lake before sunrise.",
    "nobody knew where the letters came from, or why.",
    "she counted seventeen boats near the broken bridge.",
    "my neighbour keeps bees, hens and one stubborn goat.",
    "children were painting yellow fish on the garden wall.",
    "her brother repairs violins in a small workshop.",
    "der Bäcker verkauft über Ostern süße Brötchen.",
]
PREFIXES = ["", "nobody", "the old goat", "she counted, and", "ä", "", "bees, hens and one stubborn goat. " * 5]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "spiece.model"
    size = 85 if request.param == "unigram" else 340
    path.write_bytes(train_tokenizer(TEXT, TokenizerConfig(type=request.param, vocabulary_size=size)))
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def translator(tokenizer) -> Translator:
    config = EncoderDecoderConfig(
        vocab_size=tokenizer.vocabulary_size,
        hidden_size=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(2)
    model = EncoderDecoderForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)  # decides clearly, so that rounding cannot choose a token
        model.lm_head.weight[EOS] *= 2  # ends now and then
    return Translator(model, tokenizer, max_source_tokens=80)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_translations_begin_with_their_prefix_alone_and_in_company(translator, beam_size):
    options = {"beam_size": beam_size, "max_length_extra": 4, "max_length_ratio": 1.0}
    together = translator.translate(TEXT, prefixes=PREFIXES, **options)
    for text, prefix, translation in zip(TEXT, PREFIXES, together, strict=True):
        assert translation.startswith(prefix.strip())
        assert translator.translate([text], prefixes=[prefix], **options) == [translation]
    free = translator.translate(TEXT, **options)
    assert [together[0], together[5]] == [free[0], free[5]]
    assert together[1] != free[1]
    assert translator.translate(TEXT, prefixes=[""] * len(TEXT), **options) == free


def free_behind(translator, prefixes: list[list[int]], options: SearchOptions) -> list[list[int]]:
    """The best translations of TEXT that begin with these ids, with any piece behind them."""
    nothing = torch.zeros(translator.tokenizer.vocabulary_size, dtype=torch.bool)
    heads = [Prefix("", tuple(ids)) for ids in prefixes]
    sources = translator.tokenizer.encode_batch(TEXT)
    found = n_best_ids(translator.model, sources, 1, options, prefixes=heads, continuing_V=nothing)
    return [best for (best,) in found]


def test_greedy_search_from_its_own_beginning_finds_the_same_again(translator):
    options = SearchOptions(beam_size=1)
    free = free_behind(translator, [[]] * len(TEXT), options)
    assert len({len(ids) for ids in free}) > 2
    assert free_behind(translator, [ids[:number] for number, ids in enumerate(free)], options) == free


def test_a_wide_beam_finds_the_best_of_all_ends_of_a_prefix(translator):
    """With at most one piece behind the prefix, every translation can be listed, and such a beam keeps them all."""
    words = [token for token in range(translator.tokenizer.vocabulary_size) if token != EOS]
    options = SearchOptions(beam_size=len(words) + 1, max_length_ratio=0, max_length_extra=2)
    prefixes = [translator.tokenizer.encode(text)[: 3 + number] for number, text in enumerate(reversed(TEXT))]
    sources = translator.tokenizer.encode_batch(TEXT)
    for source, prefix, found in zip(sources, prefixes, free_behind(translator, prefixes, options), strict=True):
        ends = [[*prefix, EOS], *([*prefix, word, EOS] for word in words), [*found, EOS]]
        scores = log_probabilities(translator.model, [source] * len(ends), ends)
        by_length = [score / len(end) for score, end in zip(scores, ends, strict=True)]
        assert by_length[-1] == pytest.approx(max(by_length), abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_prefix_longer_than_every_limit_stays_whole_and_the_search_ends(translator, beam_size):
    prefix = " ".join(TEXT * 4)
    options = {"beam_size": beam_size, "max_length_ratio": 0.0, "max_length_extra": 3}
    ids = translator.tokenizer.encode(prefix)
    for company in ([], TEXT[1:3]):
        found = translator.translate([TEXT[0], *company], prefixes=[prefix, *([""] * len(company))], **options)
        assert found[0].startswith(prefix)
        assert len(translator.tokenizer.encode(found[0])) <= len(ids) + 3 * 8  # at most two pieces more, re-encoded
    assert translator.translate([TEXT[0]], prefixes=[prefix], **options) == found[:1]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_prefix_ends_at_a_word(translator, beam_size):
    """No piece that lengthens the last word; punctuation and new words are free."""
    prefixes = ["the", "nob", "12", "fish ü", "the old go"]
    for translation, prefix in zip(
        translator.translate(TEXT[:5], prefixes=prefixes, beam_size=beam_size), prefixes, strict=True
    ):
        following = translation.removeprefix(prefix)[:1]
        assert not following.isalnum(), translation


def test_without_spaces_a_word_may_go_on(translator):
    joined = Prefixes(translator.tokenizer, spaces=False)
    assert not joined.make("the").ends_a_word
    spaced = Prefixes(translator.tokenizer)
    assert spaced.make(" the ").ends_a_word
    assert not spaced.make("the,").ends_a_word
    assert spaced.make("कि").ends_a_word  # a letter and a vowel sign
    assert spaced.make("  \t").ids == ()


def test_characters_that_the_tokenizer_does_not_know_stay(translator):
    prefix = "日本 goat ЖЖ"
    (translation,) = translator.translate([TEXT[0]], prefixes=[prefix], beam_size=2)
    assert translation.startswith(prefix)
    assert "⁇" not in translation[: len(prefix) + 1]


def test_the_prefix_of_a_split_line_is_that_of_its_first_part(translator):
    line = " ".join(TEXT * 3)
    assert len(translator.tokenizer.encode(line)) > translator.max_source_tokens
    (forced,) = translator.translate([line], prefixes=["nobody knew"], beam_size=2)
    (free,) = translator.translate([line], beam_size=2)
    first, *_ = translator._parts([line], translator._check_texts([line], None))[0]
    (head,) = translator.translate([translator.tokenizer.decode(first)], prefixes=["nobody knew"], beam_size=2)
    assert forced.startswith(head)
    assert forced != free


def test_a_line_without_content_is_its_prefix(translator):
    assert translator.translate(["", " \t"], prefixes=["the goat", ""], beam_size=2) == ["the goat", ""]


def test_a_prefix_is_normalised(translator):
    forced = translator.translate([TEXT[0]] * 2, prefixes=[" u\u0308ber  Ostern\n", "über Ostern"], beam_size=2)
    assert forced[0] == forced[1]
    assert forced[0].startswith("über Ostern")


def test_prefixes_must_fit_the_texts(translator):
    with pytest.raises(BadInput, match="prefixes: must be as many as the texts, 2; got 1"):
        translator.translate(TEXT[:2], prefixes=["a"])
    with pytest.raises(BadInput, match="prefixes: must be a list"):
        translator.translate(TEXT[:2], prefixes="ab")
    with pytest.raises(BadInput, match="the prefixes end after line 2, and there are more sentences"):
        list(translator.translate_stream(TEXT[:3], prefixes=["a", ""], beam_size=1))
    with pytest.raises(BadInput, match="the sentences end after line 1, and there are more prefixes"):
        list(translator.translate_stream(TEXT[:1], prefixes=["a", ""], beam_size=1))
    streamed = translator.translate_stream(TEXT, prefixes=PREFIXES, chunk_lines=2, beam_size=2)
    assert list(streamed) == translator.translate(TEXT, prefixes=PREFIXES, beam_size=2)
