"""Any line comes back as one line, the same alone and in company, and greedy search is the one that is written here."""

import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import logging as transformers_logging

from bmscale.data.tokenizer import EOS, Tokenizer, TokenizerConfig, train_tokenizer
from bmscale.errors import BadInput
from bmscale.inference.search import SearchOptions
from bmscale.inference.torch_backend import n_best_ids, translate_ids
from bmscale.inference.translator import Hypothesis, Translator
from bmscale.model.config import EncoderDecoderConfig
from bmscale.model.folder import load_model, write_model_folder

TEXT = """the old fisherman rowed across the quiet lake before sunrise. nobody knew where the letters came from.
she counted seventeen boats near the broken bridge. my neighbour keeps bees, hens and one stubborn goat.
bring warm clothes, since the mountain huts are cold at night. we missed the train, so we walked home singing.
a narrow path leads through the forest to the mill. the baker sold his last loaf to a travelling doctor.
children were painting yellow fish on the garden wall. please answer every question in your own words.
the museum shows clocks, maps and forgotten machines. her brother repairs violins in a small workshop.
after the storm they found glass, rope and driftwood. der Bäcker verkauft über Ostern süße Brötchen.
the judge listened, made notes and said nothing at all. jeden Morgen hört man Vögel zwischen den Häusern."""
SENTENCES = [f"{sentence}." for sentence in TEXT.replace("\n", " ").rstrip(".").split(". ")]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "spiece.model"
    path.write_bytes(train_tokenizer(SENTENCES, TokenizerConfig(vocabulary_size=120)))
    return path


@pytest.fixture(scope="module")
def tokenizer(spiece) -> Tokenizer:
    return Tokenizer.load(spiece)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = EncoderDecoderConfig(
        vocab_size=tokenizer.vocabulary_size,
        hidden_size=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        tie_word_embeddings=False,  # a tied random model repeats its input for ever
    )
    torch.manual_seed(1)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)  # large weights decide clearly, so that rounding cannot choose a token

    def end_now_and_then(module, inputs, output):
        output.logits[..., EOS] = output.logits[..., 10] + 3.0

    model.register_forward_hook(end_now_and_then)
    return model


@pytest.fixture(scope="module")
def translator(model, tokenizer) -> Translator:
    return Translator(model, tokenizer, max_source_tokens=64)


@pytest.fixture(scope="module")
def sources(tokenizer) -> list[list[int]]:
    """Sources of many lengths, in no order of length."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 24, (30,), generator=generator).tolist()
    return [[*torch.randint(4, tokenizer.vocabulary_size, (n,), generator=generator).tolist(), EOS] for n in lengths]


GREEDY = SearchOptions(beam_size=1)


@torch.no_grad()
def greedy(model, source: list[int], limit: int) -> list[int]:
    """Greedy search without cache, batch or padding: the most likely token until </s> or the limit."""
    target = [EOS]
    for _ in range(limit - 1):
        logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits
        token = int(logits[0, -1].argmax())
        if token == EOS:
            break
        target.append(token)
    return target[1:]


def test_beam_one_is_the_plain_greedy_loop(model, sources):
    expected = [greedy(model, source, GREEDY.longest_target(len(source))) for source in sources]
    assert translate_ids(model, sources, GREEDY) == expected
    assert len({len(target) for target in expected}) > 3
    limited = [len(t) == GREEDY.longest_target(len(s)) - 1 for s, t in zip(sources, expected, strict=True)]
    assert any(limited)
    assert not all(limited)


@torch.no_grad()
def log_probabilities(model, source: list[int], targets: list[list[int]]) -> list[float]:
    """Of each target with its </s>; the targets are of one length."""
    labels_BT = torch.tensor([[*target, EOS] for target in targets])
    inputs_BT = torch.tensor([[EOS, *target] for target in targets])
    logits = model(input_ids=torch.tensor([source] * len(targets)), decoder_input_ids=inputs_BT).logits
    return logits.log_softmax(-1).gather(-1, labels_BT[..., None]).sum((1, 2)).tolist()


def log_probability(model, source: list[int], target: list[int]) -> float:
    return log_probabilities(model, source, [target])[0]


def test_a_wide_beam_finds_the_best_of_all_short_translations(model, tokenizer, sources):
    """With at most one token and </s>, every translation can be listed, and a beam of V keeps them all."""
    words = [token for token in range(tokenizer.vocabulary_size) if token != EOS]
    options = SearchOptions(beam_size=len(words) + 1, max_length_ratio=0, max_length_extra=2)
    for source in sources[:8]:
        best = -torch.inf
        for length in range(2):
            targets = [list(target) for target in itertools.product(words, repeat=length)]
            best = max(best, max(log_probabilities(model, source, targets)) / (length + 1))
        found = translate_ids(model, [source], options)[0]
        assert log_probability(model, source, found) / (len(found) + 1) == pytest.approx(best, abs=1e-4)


def test_a_beam_is_at_least_as_likely_as_greedy_search(model, sources):
    beams = translate_ids(model, sources, SearchOptions(beam_size=6, length_penalty=0.0))
    greedily = translate_ids(model, sources, GREEDY)
    gains = [log_probability(model, s, b) - log_probability(model, s, g) for s, b, g in zip(
        sources, beams, greedily, strict=True)]  # fmt: skip
    assert sum(gains) > 1
    assert beams != greedily


def test_the_length_penalty_favours_long_translations(model, sources):
    lengths = [
        sum(map(len, translate_ids(model, sources, SearchOptions(beam_size=4, length_penalty=penalty))))
        for penalty in (-1.0, 0.0, 1.0, 3.0)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_translation_does_not_depend_on_its_batch(model, sources, beam_size):
    together = translate_ids(model, sources, SearchOptions(beam_size=beam_size, max_batch_tokens=100_000))
    few = translate_ids(model, sources, SearchOptions(beam_size=beam_size, max_batch_tokens=60 * beam_size))
    alone = [translate_ids(model, [source], SearchOptions(beam_size=beam_size))[0] for source in sources]
    backwards = translate_ids(model, sources[::-1], SearchOptions(beam_size=beam_size))[::-1]
    assert together == few == alone == backwards


def test_no_batch_is_larger_than_asked(model, sources, monkeypatch):
    widths = []
    generate = model.generate

    def spy(input_ids, **options):
        widths.append(input_ids.numel())
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "generate", spy)
    translate_ids(model, sources, SearchOptions(beam_size=2, max_batch_tokens=120))
    assert max(widths) <= 60
    assert len(widths) < len(sources)
    assert sum(widths) < 1.5 * sum(map(len, sources))


def test_every_translation_ends_within_its_limit(model, sources):
    def never_end(module, inputs, output):
        output.logits[..., EOS] = -1e4

    handle = model.register_forward_hook(never_end)
    try:
        for beam_size in (1, 3):
            options = SearchOptions(beam_size=beam_size, max_length_ratio=1.5, max_length_extra=2)
            for source, target in zip(sources, translate_ids(model, sources, options), strict=True):
                assert len(target) == int(1.5 * len(source)) + 2 - 1  # </s> is counted too
    finally:
        handle.remove()


def test_the_mode_of_the_module_and_empty_sources_are_kept(model, sources):
    model.train()
    try:
        results = translate_ids(model, [[EOS], sources[0], []], GREEDY)
        assert model.training
    finally:
        model.eval()
    assert results == [[], translate_ids(model, [sources[0]], GREEDY)[0], []]
    assert translate_ids(model, []) == []


def test_synced_without_other_ranks_changes_nothing(model, sources):
    assert translate_ids(model, sources, GREEDY, synced=True) == translate_ids(model, sources, GREEDY)


RANK = """
import json, sys, torch
from bmscale.inference.torch_backend import SearchOptions, translate_ids
from bmscale.model.folder import load_model
folder, store, rank, sources = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
model, forwards = load_model(folder), []
model.register_forward_pre_hook(lambda *_: forwards.append(1))
found = translate_ids(model, sources, SearchOptions(beam_size=1, max_batch_tokens=80), synced=True)
print(json.dumps([len(forwards), found]))
torch.distributed.destroy_process_group()
"""


def test_ranks_with_different_work_make_the_same_number_of_forwards(model, spiece, sources, tmp_path):
    """Under ZeRO-3 each forward is a collective: a rank with one forward more waits for ever."""
    write_model_folder(tmp_path / "m", model.config, model.named_parameters(), spiece, {})
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, tmp_path / "m", tmp_path / "store", str(rank), json.dumps(work)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, work in enumerate((sources, sources[:1]))
    ]
    try:
        answers = [json.loads(rank.communicate(timeout=100)[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    (forwards, all_of_them), (same, one) = answers
    assert forwards == same
    assert all_of_them[:1] == one
    assert all_of_them == translate_ids(load_model(tmp_path / "m"), sources, GREEDY)


ODD_LINES = [
    "the red dog said hello to us.",
    "",
    "   \t ",
    "\x00\x01\x07",
    "line\nbreaks\r\ninside\u2028one",
    "half a pair \ud83d and \udcff",
    "emoji 🙂 👩‍👩‍👧",
    "日本語",
    "</s> <pad> <s>",
    "cat",
]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_any_line_survives_in_its_place(translator, beam_size):
    translations = translator.translate(ODD_LINES, beam_size=beam_size)
    assert len(translations) == len(ODD_LINES)
    assert translations[1:4] == ["", "", ""]
    for line, translation in zip(ODD_LINES, translations, strict=True):
        assert len(translation.splitlines()) <= 1
        assert translator.translate([line], beam_size=beam_size) == [translation]


def test_texts_are_normalised_as_in_training(translator):
    texts = ["the  u\u0308ber\u00a0dog ", "the über dog"]
    assert len(set(translator.translate(texts, beam_size=1))) == 1


def spy_on_sources(translator, monkeypatch) -> list[list[int]]:
    seen: list[list[int]] = []

    def search(model, sources, n, options, **_):
        seen.extend(sources)
        return [[source] for source in sources]  # the identity: what was split must come together again

    monkeypatch.setattr("bmscale.inference.torch_backend.n_best_ids", search)
    return seen


LONG_LINES = {
    "sentences": " ".join(SENTENCES),
    "words": "the big red dog " * 2500,
    "one word": "dogcatowl" * 300,
    "abbreviations": "the dog. " * 200,
    "no letters": "." * 1000,
}


@pytest.mark.parametrize("name", LONG_LINES)
def test_a_long_line_is_split_and_joined(translator, monkeypatch, name):
    seen = spy_on_sources(translator, monkeypatch)
    line = LONG_LINES[name]
    (joined,) = translator.translate([line])
    assert joined.replace(" ", "") == line.replace(" ", "")
    if name != "one word":
        assert joined == line.strip() or name == "no letters"
    assert max(map(len, seen)) <= 64
    assert all(source[-1] == EOS for source in seen)


@pytest.mark.parametrize(
    "sentences",
    [
        [
            "the old goat said 3.5 to us.",
            '"we walked home singing!"',
            "she said nothing?",
            "(nobody knew.)",
            "the end…",
        ],
        ["the goat said nothing。", "“we walked home singing！”", "nobody knew？", "the judge listened。"],
    ],
)
def test_a_long_line_is_split_at_ends_of_sentences(model, tokenizer, monkeypatch, sentences):
    translator = Translator(model, tokenizer, max_source_tokens=30)
    seen = spy_on_sources(translator, monkeypatch)
    translator.translate([("" if "。" in sentences[0] else " ").join(sentences * 3)])
    assert seen == [tokenizer.encode(sentence) for sentence in sentences * 3]


def test_a_line_that_fits_is_not_split(translator, monkeypatch):
    seen = spy_on_sources(translator, monkeypatch)
    translator.translate(["the dog. the cat."])
    assert len(seen) == 1


def test_scripts_without_spaces_are_joined_without_spaces(model, tokenizer, monkeypatch):
    translator = Translator(model, tokenizer, max_source_tokens=8, target_language="zh_CN")
    spy_on_sources(translator, monkeypatch)
    assert translator.translate(["dog.dog.dog. cat"]) == ["dog.dog.dog.cat"]


def test_a_ten_thousand_word_line_is_translated_as_its_sentences(translator):
    sentences = [sentence for sentence in SENTENCES if len(translator.tokenizer.encode(sentence)) <= 64]
    repeats = 10_000 // sum(len(sentence.split()) for sentence in sentences) + 1
    (translation,) = translator.translate([" ".join(sentences * repeats)], beam_size=1)
    expected = [found for found in translator.translate(sentences, beam_size=1) if found]
    assert len(expected) > 1
    assert translation == " ".join(expected * repeats)


def test_a_stream_keeps_order_and_reads_no_further_than_its_chunk(translator):
    read = 0

    def endless():
        nonlocal read
        for read in itertools.count(1):
            yield f"{ODD_LINES[read % len(ODD_LINES)]}\n"

    lines = [f"{ODD_LINES[number % len(ODD_LINES)]}\n" for number in range(1, 11)]
    stream = translator.translate_stream(endless(), chunk_lines=4, beam_size=1)
    assert list(itertools.islice(stream, 10)) == translator.translate(lines, beam_size=1)
    assert read == 12
    # A chunk also ends by characters, so that long lines cannot fill the memory.
    assert len(next(translator.translate_stream(endless(), chunk_characters=1, beam_size=1))) >= 0
    assert read == 1
    assert list(translator.translate_stream([], chunk_lines=4)) == []
    assert len(list(translator.translate_stream(["cat", "dog", "cat"], chunk_lines=2, beam_size=1))) == 3


def test_from_pretrained_opens_a_folder_and_warns_of_nothing(model, spiece, translator, tmp_path, capfd):
    provenance = {"max_source_tokens": 40, "target_language": "de"}
    write_model_folder(tmp_path / "m", model.config, model.named_parameters(), spiece, provenance)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            opened = Translator.from_pretrained(tmp_path / "m", device="cpu")
            opened.translate(ODD_LINES, beam_size=1)
            opened.translate(ODD_LINES, beam_size=2, length_penalty=0.6)
    finally:
        transformers_logging.set_verbosity(before)
    assert opened.max_source_tokens == 40
    assert next(opened.model.parameters()).dtype == torch.float32
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size: must be a whole number of at least 1; got 0"),
        ({"beam_size": 2.5}, "beam_size: must be a whole number"),
        ({"beam_size": True}, "beam_size: must be a whole number"),
        ({"max_batch_tokens": 0}, "max_batch_tokens: must be a whole number of at least 1; got 0"),
        ({"max_length_extra": -1}, "max_length_extra: must be"),
        ({"beam_size": 1001}, "beam_size: must be at most 1,000; got 1,001"),
        ({"beam_size": 121}, "beam_size: must be at most 120, the pieces of the vocabulary; got 121"),
        ({"length_penalty": float("nan")}, "length_penalty: must be a number from -10 to 10; got nan"),
        ({"length_penalty": "1"}, "length_penalty: must be a number"),
        ({"length_penalty": 99999.0}, "length_penalty: must be a number from -10 to 10; got 99999"),
        ({"length_penalty": -(10**400)}, "length_penalty: must be a number"),
        ({"max_length_ratio": -1.0}, "max_length_ratio: must be a number from 0 to 1000; got -1"),
        ({"max_length_ratio": 1e308}, "max_length_ratio: must be"),
    ],
)
def test_options_that_cannot_be_used_are_refused(translator, options, message):
    with pytest.raises(BadInput, match=message):
        translator.translate(["cat"], **options)


def test_the_ends_of_the_range_of_penalties_still_rank(translator):
    short, long = (
        translator.translate(["the old fisherman", "a goat"], beam_size=3, length_penalty=penalty)
        for penalty in (-10.0, 10.0)
    )
    assert len("".join(short)) < len("".join(long))


def test_other_mistakes_are_refused(translator, model, tokenizer):
    with pytest.raises(BadInput, match="got one string"):
        translator.translate("cat")
    with pytest.raises(BadInput, match="chunk_lines"):
        next(translator.translate_stream(["cat"], chunk_lines=0))
    with pytest.raises(BadInput, match="max_source_tokens: must be at least 2"):
        Translator(model, tokenizer, max_source_tokens=1)
    with pytest.raises(BadInput, match="device: 'gpu' cannot be used"):
        Translator.from_pretrained("x", device="gpu")
    with pytest.raises(BadInput, match="device: 'meta' cannot be used"):
        Translator.from_pretrained("x", device="meta")


@pytest.fixture(scope="module")
def plain(spiece, tokenizer) -> Translator:
    """A model without a hook on its logits, so that what scores pairs sees what the search sees."""
    config = EncoderDecoderConfig(
        vocab_size=tokenizer.vocabulary_size,
        hidden_size=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(2)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        model.lm_head.weight[EOS] *= 2
    return Translator(model, tokenizer, max_source_tokens=64)


@pytest.mark.parametrize(
    ("beam_size", "n", "penalty"), [(1, 1, 1.0), (4, 1, 1.0), (4, 4, 1.0), (5, 3, 0.0), (4, 4, 2.0)]
)
def test_n_best_begins_with_the_translation_and_falls(plain, beam_size, n, penalty):
    options = {"beam_size": beam_size, "length_penalty": penalty}
    lists = plain.translate_n_best(ODD_LINES, n, **options)
    assert [hypotheses[0].text for hypotheses in lists] == plain.translate(ODD_LINES, **options)
    for line, hypotheses in zip(ODD_LINES, lists, strict=True):
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == pytest.approx(sorted(scores, reverse=True), abs=1e-4)
        assert 1 <= len(hypotheses) <= n
        alone = plain.translate_n_best([line], n, **options)[0]
        assert [found.text for found in alone] == [found.text for found in hypotheses]
    assert len(lists[0]) == n
    assert lists[1] == [Hypothesis("", 0.0)]


def test_the_score_of_a_hypothesis_is_its_log_probability_by_length(plain, sources):
    for penalty in (0.0, 1.0, 0.6):
        options = SearchOptions(beam_size=4, length_penalty=penalty)
        found = n_best_ids(plain.model, sources[:6], 4, options)
        scores = plain._search_scores(sources[:6], found, options)
        for source, hypotheses, values in zip(sources, found, scores, strict=False):
            for ids, value in zip(hypotheses, values, strict=True):
                expected = log_probability(plain.model, source, ids) / (len(ids) + 1) ** penalty
                assert value == pytest.approx(expected, rel=1e-4)


def test_n_best_lists_hold_each_translation_once_and_no_more_than_there_are(plain, sources):
    """With one piece behind a prefix of the whole translation, a search runs out of ways."""
    prefix = "the old goat"
    options = {"beam_size": 5, "max_length_ratio": 0.0, "max_length_extra": 1}
    (found,) = plain.translate_n_best(["the goat"], 5, prefixes=[prefix], **options)
    assert [hypothesis.text for hypothesis in found] == [prefix]
    for hypotheses in n_best_ids(plain.model, sources, 5, SearchOptions()):
        assert len({tuple(ids) for ids in hypotheses}) == len(hypotheses)


def test_n_best_of_a_split_line_joins_kth_with_kth(plain):
    line = " ".join(SENTENCES[:4])
    parts, _, _ = plain._parts([line], plain._check_texts([line], None))
    assert len(parts) > 1
    lists = plain.translate_n_best([plain.tokenizer.decode(part) for part in parts], 3, beam_size=3)
    (joined,) = plain.translate_n_best([line], 3, beam_size=3)
    for k, hypothesis in enumerate(joined):
        assert hypothesis.score == pytest.approx(sum(found[k].score for found in lists), rel=1e-4)
        assert hypothesis.text == " ".join(found[k].text for found in lists if found[k].text)


@pytest.mark.parametrize("n", [0, 4, True, 1.5])
def test_more_hypotheses_than_beams_are_refused(plain, n):
    with pytest.raises(BadInput, match="n_best: must be a whole number from 1 to the beam size, 3; got"):
        plain.translate_n_best(["cat"], n, beam_size=3)


def test_pairs_are_scored_in_order_with_empty_sides(plain):
    sources, targets = ["the dog", "", "a cat", ""], ["der Hund ist sehr alt", "", "", "über"]
    scores = plain.score(sources, targets)
    assert [score.tokens for score in scores] == [len(plain.tokenizer.encode(target)) for target in targets]
    for source, target, score in zip(sources, targets, scores, strict=True):
        ids = plain.tokenizer.encode(source), plain.tokenizer.encode(target)[:-1]
        assert score.log_probability == pytest.approx(log_probability(plain.model, *ids), rel=1e-4)
    assert plain.score([], []) == []
    with pytest.raises(BadInput, match="got 1 sources and 2 targets"):
        plain.score(["a"], ["b", "c"])
    with pytest.raises(BadInput, match="got one string"):
        plain.score("a", "b")
