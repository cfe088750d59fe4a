"""One model says the same with PyTorch and with CTranslate2, in all that a Translator is asked."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from bmscale.data.tokenizer import EOS
from bmscale.errors import BadInput
from bmscale.inference import ctranslate2_backend
from bmscale.inference.alignment import Alignment, draw_alignments
from bmscale.inference.alternatives import next_tokens
from bmscale.inference.ctranslate2_backend import CTranslate2Backend
from bmscale.inference.prefix import Prefix
from bmscale.inference.search import SearchOptions
from bmscale.inference.torch_backend import TorchBackend
from bmscale.inference.translator import Hypothesis, Translator

LINES = [
    "the old fisherman rowed across the lake.",
    "",
    "   \t ",
    "\x00\x01\x07",
    "line\nbreaks\r\ninside\u2028one",
    "half a pair \ud83d and \udcff",
    "emoji 🙂 日本語",
    "</s> <pad> <s>",
    "goat",
    "she counted seventeen boats near the broken bridge, and nobody knew where the letters came from.",
]


def test_greedy_translations_and_scores_are_the_same(wild):
    assert wild.ctranslate2.backend.name == "ctranslate2"
    found = wild.ctranslate2.translate(LINES, beam_size=1)
    assert found == wild.torch.translate(LINES, beam_size=1)
    assert len(set(found)) > 5
    for one, two in zip(wild.torch.score(LINES, found), wild.ctranslate2.score(LINES, found), strict=True):
        assert one.tokens == two.tokens
        assert two.log_probability == pytest.approx(one.log_probability, rel=1e-5)


def test_a_trained_model_translates_alike_with_a_beam_and_in_int8(trained, language):
    sources = language.sources(60, 1)
    free = [Prefix()] * len(sources)
    continuing = trained.torch._prefixes.continuing_V
    int8 = CTranslate2Backend.from_pretrained(trained.int8, "cpu")
    assert int8.translator.compute_type.startswith("int8")
    expected = trained.torch.backend.search(sources, 1, SearchOptions(1), free, continuing)
    learnt = [found == [language.translation(source)] for source, found in zip(sources, expected, strict=True)]
    assert np.mean(learnt) > 0.9
    for backend in (trained.torch.backend, trained.ctranslate2.backend, int8):
        found = backend.search(sources, 1, SearchOptions(1), free, continuing)
        if backend is int8:  # where the model is not sure, rounding may choose
            assert np.mean([one == two for one, two in zip(found, expected, strict=True)]) > 0.9
        else:
            assert found == expected
        beams = backend.search(sources, 1, SearchOptions(4), free, continuing)
        assert np.mean([one == two for one, two in zip(beams, expected, strict=True)]) > 0.9
    targets = [[*found[0], EOS] for found in expected]
    exact, rounded = (backend.log_probabilities(sources, targets, 4096) for backend in (trained.torch.backend, int8))
    tokens = sum(map(len, targets))
    assert 1e-5 < abs(sum(exact) - sum(rounded)) / tokens < 0.02


def test_n_best_lists_are_scored_alike(wild):
    ones, twos = (side.translate(LINES, beam_size=4, n_best=4) for side in (wild.torch, wild.ctranslate2))
    alike = 0
    for one, two in zip(ones, twos, strict=True):
        assert 1 <= len(two) <= 4
        assert len({hypothesis.text for hypothesis in two}) == len(two)
        by_text = {hypothesis.text: hypothesis.score for hypothesis in one}
        for hypothesis in two:
            if hypothesis.text in by_text:
                alike += 1
                assert hypothesis.score == pytest.approx(by_text[hypothesis.text], abs=1e-4)
    assert alike > 10  # the searches end by different rules
    assert twos[1] == [Hypothesis("", 0.0)]
    assert [found[0].text for found in twos] == wild.ctranslate2.translate(LINES, beam_size=4)


class Engine:
    """A CTranslate2 engine that notes into how many tokens at most a call is to be divided, and how many it has."""

    def __init__(self, engine):
        self._engine, self.calls = engine, []

    def __getattr__(self, name):
        def call(rows, *given, max_batch_size, **options):
            self.calls.append((name, max_batch_size, sum(map(len, rows))))
            return getattr(self._engine, name)(rows, *given, max_batch_size=max_batch_size, **options)

        return getattr(self._engine, name) if name.startswith("num") else call


def test_two_workers_share_each_call_and_say_what_one_says(wild, monkeypatch):
    sides = []
    for workers in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", workers)
        sides.append(CTranslate2Backend.from_pretrained(wild.exported, "cpu"))
    one, two = sides
    assert (one.translator.num_translators, two.translator.num_translators) == (1, 2)
    engine = two.translator = Engine(two.translator)
    sources = wild.torch.tokenizer.encode_batch([line for line in LINES if line.isprintable() and line.strip()])
    targets = [[*source[:2], EOS] for source in sources]
    free, heads = [Prefix()] * len(sources), [source[:2] for source in sources]
    options = SearchOptions(1, max_length_ratio=0)  # one limit, so one call
    assert two.search(sources, 1, options, free, None) == one.search(sources, 1, options, free, None)
    scores = (side.token_log_probabilities(sources, targets) for side in (two, one))
    nexts = (side.next_log_probabilities(sources, heads) for side in (two, one))
    weights = (side.attention(sources, targets) for side in (two, one))
    compared: Any = (scores, nexts, weights)
    for found, expected in compared:
        for row, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(row, other, atol=1e-4)
    assert [name for name, *_ in engine.calls] == [
        "translate_batch",
        "score_batch",
        "translate_batch",
        "translate_batch",
    ]
    assert all(most < tokens for _, most, tokens in engine.calls)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("ratio", [0.5, 3.0])
def test_a_translation_does_not_depend_on_its_company(wild, beam_size, ratio):
    options = {"beam_size": beam_size, "max_length_ratio": ratio, "max_length_extra": 2}
    together = wild.ctranslate2.translate(LINES, **options)
    assert together == [wild.ctranslate2.translate([line], **options)[0] for line in LINES]
    assert together == wild.ctranslate2.translate(LINES[::-1], **options)[::-1]
    assert together == wild.ctranslate2.translate(LINES, **options, batch_tokens=20)


def test_no_translation_is_longer_than_its_limit(wild):
    """At the limit PyTorch is made to end and CTranslate2 is cut: greedy search comes to the same."""
    backend = wild.ctranslate2.backend
    sources = [[5] * length + [EOS] for length in (1, 3, 17, 18, 40)]
    free, continuing = [Prefix()] * len(sources), wild.torch._prefixes.continuing_V
    for ratio, extra in ((1.5, 2), (0.0, 1), (0.0, 3)):
        options = SearchOptions(1, max_length_ratio=ratio, max_length_extra=extra)
        found = backend.search(sources, 1, options, free, continuing)
        assert found == wild.torch.backend.search(sources, 1, options, free, continuing)
        assert all(
            len(ids[0]) < options.longest_target(len(source)) for source, ids in zip(sources, found, strict=True)
        )


PREFIXES = ["", "nobody", "the old goat", "she counted, and", "ä", "", "bees, hens and one stubborn goat. " * 3]


def test_prefixes_are_kept_to_the_letter(wild):
    texts = LINES[-1:] * len(PREFIXES)
    greedily = [side.translate(texts, beam_size=1, prefixes=PREFIXES) for side in (wild.torch, wild.ctranslate2)]
    assert greedily[0] == greedily[1]
    for beam_size in (1, 4):
        found = wild.ctranslate2.translate(texts, beam_size=beam_size, prefixes=PREFIXES)
        for text, prefix, translation in zip(texts, PREFIXES, found, strict=True):
            assert translation.startswith(prefix.strip())
            rest = translation[len(prefix.strip()) :]
            if prefix[-1:].isalpha():
                assert not rest[:1].isalnum()
            assert wild.ctranslate2.translate([text], beam_size=beam_size, prefix=prefix) == [translation]


def test_a_word_is_not_lengthened_though_the_model_would(wild):
    """Every way of the search lengthens the word: the best piece that does not is taken, as PyTorch takes it."""
    prefixes = [Prefix("the", tuple(wild.torch.tokenizer.encode("the")[:-1]), ends_a_word=True)]
    said = wild.ctranslate2.backend.next_log_probabilities([[9, 8, EOS]], [prefixes[0].ids])[0]
    best = np.argsort(-said)
    continuing = np.zeros(len(said), dtype=bool)
    continuing[best[:5]] = True
    options = SearchOptions(1)
    sides = [
        side.backend.search([[9, 8, EOS]], 1, options, prefixes, torch.tensor(continuing))
        for side in (wild.torch, wild.ctranslate2)
    ]
    assert sides[0] == sides[1]
    ids = sides[0][0][0]
    assert len(ids) == len(prefixes[0].ids) if best[5] == EOS else ids[len(prefixes[0].ids)] == best[5]


@pytest.mark.parametrize("prefix", ["", "the old"])
def test_alternatives_part_ways_at_their_first_piece(wild, prefix):
    ones, twos = (
        side.translate(LINES[:2], beam_size=1, alternatives=5, prefix=prefix) for side in (wild.torch, wild.ctranslate2)
    )
    for one, two in zip(ones, twos, strict=True):
        assert [found.text for found in one] == [found.text for found in two]
        assert [found.score for found in one] == pytest.approx([found.score for found in two], abs=1e-4)
    assert len({found.text for found in ones[0]}) == 5
    scores = [found.score for found in ones[0]]
    assert scores == sorted(scores, reverse=True)
    assert ones[1] == [Hypothesis(prefix, 0.0)]
    tokenizer, heads = wild.torch.tokenizer, [wild.torch._prefixes.make(prefix)]
    sources, continuing = [tokenizer.encode(LINES[0])], wild.torch._prefixes.continuing_V.numpy()
    ways = [next_tokens(side.backend, sources, [0], heads, continuing, 5)[0] for side in (wild.torch, wild.ctranslate2)]
    assert ways[0] == ways[1]
    said = wild.torch.backend.next_log_probabilities(sources, [heads[0].ids])[0]
    assert np.exp(said).sum() == pytest.approx(1.0, abs=1e-4)
    barred = {0, 1, 3} | (set(np.flatnonzero(continuing).tolist()) if prefix else {EOS})
    assert ways[0] == [token for token in np.argsort(-said) if token not in barred][:5]


def test_alternatives_that_cannot_be_had_are_refused(wild):
    for n in (0, 101, True):
        with pytest.raises(BadInput, match="alternatives: must be a whole number from 1 to 100"):
            wild.torch.translate(["goat"], alternatives=n)
    with pytest.raises(BadInput, match="got both"):
        wild.torch.translate(["goat"], alternatives=2, n_best=2)


def test_alignments_are_the_same_and_what_the_model_learnt(wild, trained, language):
    targets = wild.torch.translate(LINES, beam_size=1)
    ones, twos = (side.align(LINES, targets) for side in (wild.torch, wild.ctranslate2))
    assert ones[0].source[0] == "\u2581the"
    sizes = set()
    for one, two in zip(ones, twos, strict=True):
        assert (one.source, one.target) == (two.source, two.target)
        assert one.weights.shape == (len(one.target), len(one.source))
        np.testing.assert_allclose(one.weights, two.weights, atol=2e-5)
        assert (one.weights.sum(axis=1) < 1.0 + 1e-5).all()
        sizes.add(one.weights.size)
    assert len(sizes) > 5
    sources = language.sources(20, 5)
    given = [[*language.translation(source), EOS] for source in sources]
    for backend in (trained.torch.backend, trained.ctranslate2.backend):
        right = [matrix.argmax(axis=1) == np.arange(len(matrix)) for matrix in backend.attention(sources, given)]
        assert np.concatenate(right).mean() > 0.4  # by chance it would be one in four


def test_alignments_leave_alone_what_other_threads_compute(wild, monkeypatch):
    """The kernel of the model is asked for its weights, and never exchanged."""
    targets = wild.torch.translate(LINES, beam_size=2)
    expected = [one.weights for one in wild.torch.align(LINES, targets)]

    def refuse(*_):
        raise AssertionError("the kernel was exchanged")

    monkeypatch.setattr(wild.torch.model, "set_attn_implementation", refuse)
    with ThreadPoolExecutor(4) as threads:
        aligned = [threads.submit(wild.torch.align, LINES, targets) for _ in range(4)]
        translated = [threads.submit(wild.torch.translate, LINES, beam_size=2) for _ in range(4)]
        assert all(future.result() == targets for future in translated)
        for future in aligned:
            for found, weights in zip(future.result(), expected, strict=True):
                np.testing.assert_allclose(found.weights, weights, atol=1e-6)


def test_a_picture_of_alignments(wild, tmp_path):
    lines, targets = ["the goat.", "", "nobody knew"], ["a boat", "a", "nobody knew why"]
    drawn = draw_alignments(wild.torch.align(lines, targets), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert drawn == 2
    one = Alignment(["\u2581a$", "b_$"], ["c"], np.array([[0.9, 0.1]]))
    assert one.best() == [0]
    assert draw_alignments([one] * 20, tmp_path / "b.svg") == 12
    assert draw_alignments([], tmp_path / "c.pdf") == 0
    with pytest.raises(BadInput, match=r"must be named \*\.png"):
        draw_alignments([one], tmp_path / "b.jpg")
    with pytest.raises(BadInput, match="its folder does not exist"):
        draw_alignments([one], tmp_path / "none" / "b.png")


def test_documents_keep_their_lines(wild):
    document = "nobody knew. She counted boats.\r\n\n  \t\n  the goat.\n"
    for side in (wild.torch, wild.ctranslate2):
        (found,) = side.translate_documents([document], beam_size=1)
        one, two, three = side.translate(["nobody knew.", "She counted boats.", "the goat."], beam_size=1)
        assert found == f"{one} {two}\r\n\n  \t\n  {three}\n"
        assert list(side.translate_stream(document.split("\n"), paragraphs=True, beam_size=1)) == [
            f"{one} {two}", "", "", three, ""
        ]  # fmt: skip
    with pytest.raises(BadInput, match="give prefixes without paragraphs"):
        next(wild.torch.translate_stream(["a"], prefixes=["b"], paragraphs=True))
    for name in ("n_best", "alternatives"):
        with pytest.raises(BadInput, match=f"{name}: is of one sentence"):
            next(wild.torch.translate_stream(["a"], paragraphs=True, **{name: 2}))


def test_long_lines_are_split_for_ctranslate2_too(wild):
    line = " ".join(LINES[:1] * 30)
    assert wild.ctranslate2.translate([line], beam_size=1) == wild.torch.translate([line], beam_size=1)


def test_what_cannot_be_opened_is_refused(wild, tmp_path):
    for options, message in (
        ({"backend": "onnx"}, "backend: must be one of auto, torch, ctranslate2; got onnx"),
        ({"backend": "torch"}, "is a CTranslate2 folder, which backend torch cannot open"),
        ({"device": "tpu"}, "device: must be auto, cpu, cuda"),
        ({"device": "cuda:9"}, "CTranslate2 cannot use it on cuda:9"),
        ({"compute_type": "int4"}, "compute type: must be auto or one of float32, int8"),
        ({"compute_type": "float16", "device": "cpu"}, "CTranslate2 cannot use it on cpu: .*float16"),
    ):
        with pytest.raises(BadInput, match=message):
            Translator.from_pretrained(wild.exported, **dict[str, Any](options))
    with pytest.raises(BadInput, match=r"is no CTranslate2 folder; make one with bmscale export .* --to ctranslate2"):
        Translator.from_pretrained(wild.folder, backend="ctranslate2")
    with pytest.raises(BadInput, match="must be one of auto, float32, bfloat16, float16 with torch; got int8"):
        Translator.from_pretrained(wild.folder, compute_type="int8")
    half = Translator.from_pretrained(wild.folder, device="cpu", compute_type="bfloat16")
    assert str(half.model.dtype) == "torch.bfloat16"
    assert isinstance(half.backend, TorchBackend)


def test_a_table_of_positions_ends(wild, trained, tmp_path):
    """Sinusoids are a table in CTranslate2: beyond it a text is refused, not read wrongly."""
    from bmscale.deployment.formats import make_format
    from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
    from bmscale.model.folder import open_model_folder, write_model_folder

    config = EncoderDecoderConfig(
        vocab_size=100, hidden_size=16, num_encoder_layers=1, num_decoder_layers=1, num_attention_heads=2,
        positions="sinusoid", max_position_embeddings=12,
    )  # fmt: skip
    model = EncoderDecoderForConditionalGeneration(config)
    write_model_folder(tmp_path / "m", config, model.named_parameters(), wild.folder / "spiece.model", {})
    make_format("ctranslate2").write(open_model_folder(tmp_path / "m"), tmp_path / "c")
    one, two = (Translator.from_pretrained(tmp_path / name, device="cpu") for name in ("m", "c"))
    assert two.translate(LINES, beam_size=1) == one.translate(LINES, beam_size=1)  # long lines are split
    for ask in (two.score, two.align):
        with pytest.raises(BadInput, match="must have at most 12 tokens"):
            ask(["goat"], [LINES[-1]])
        with pytest.raises(BadInput, match="must have at most 12 tokens"):
            ask([LINES[-1]], ["goat"])
    with pytest.raises(BadInput, match="must have at most 12 tokens"):
        two.translate(["goat"], prefix=LINES[-1])
    with pytest.raises(BadInput, match="must have at most 12 tokens"):
        two.translate(["goat"], prefix=LINES[-1], alternatives=2)
    never = torch.zeros(100, dtype=torch.bool)
    for length in range(1, 12):  # near the end of the table a prefix has less room behind it than it is granted
        prefix = Prefix("", (9,) * length, ends_a_word=False)
        for beam_size in (1, 3):
            ((found,),) = two.backend.search([[9, 8, EOS]], 1, SearchOptions(beam_size), [prefix], never)
            assert tuple(found[:length]) == prefix.ids
            assert len(found) < 12
        assert two.backend.next_log_probabilities([[9, 8, EOS]], [prefix.ids])[0].shape == (100,)
    with pytest.raises(BadInput, match="must have at most 12 tokens"):
        two.backend.next_log_probabilities([[9, 8, EOS]], [(9,) * 12])


def test_batches_of_forced_tokens_are_bounded(wild, monkeypatch):
    lines = [line for line in LINES if line.strip()] * 2
    backend = wild.ctranslate2.backend
    sources, given = wild.torch._pairs(lines, wild.torch.translate(lines, beam_size=1))
    rows = [row for row, source in enumerate(sources) if len(source) > 1]
    sources, given = [sources[row] for row in rows], [given[row] for row in rows]
    before = backend.attention(sources, given), backend.next_log_probabilities(sources, [[9, 8]] * len(sources))
    monkeypatch.setattr(ctranslate2_backend, "_MOST_SLOTS", 24)
    after = backend.attention(sources, given), backend.next_log_probabilities(sources, [[9, 8]] * len(sources))
    for ones, twos in zip(before, after, strict=True):
        for one, two in zip(ones, twos, strict=True):
            np.testing.assert_allclose(one, two, atol=2e-5)
    lengths = [len(ids) for ids in given]
    batches = list(ctranslate2_backend._batches(range(len(sources)), sources, lengths))
    assert sorted(row for _, rows in batches for row in rows) == list(range(len(sources)))
    for length, rows in batches:
        widest = max(len(sources[row]) for row in rows)
        assert len(rows) == 1 or len(rows) * (widest + length + 1) <= 24


def test_the_command_takes_either_folder(wild, run, tmp_path):
    stdin = "".join(f"{line}\n" for line in ("the goat.", "", "nobody knew. She counted boats."))
    one, two = (run("translate", place, "--beam-size", 1, stdin=stdin).out for place in (wild.folder, wild.exported))
    assert one == two
    assert one.count("\n") == 3
    picture = tmp_path / "a.png"
    run("translate", wild.exported, "--align", picture, "--compute-type", "int8", stdin="goat\n")
    assert picture.stat().st_size > 1000
    listed = run("translate", wild.exported, "--alternatives", 3, stdin=stdin).out.splitlines()
    assert [line.split(" ||| ")[0] for line in listed] == ["0", "0", "0", "1", "2", "2", "2"]
    found = run("translate", wild.exported, "--paragraphs", stdin=stdin).out
    assert found.splitlines()[2] == " ".join(wild.ctranslate2.translate(["nobody knew.", "She counted boats."]))
    assert run("translate", wild.exported, "--score", stdin="goat\tgoat\n").out.count("\t") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-best", 2, "--alternatives", 2], "go each by itself"),
        (["--align", "x.png", "--n-best", 2], "go each by itself"),
        (["--align", "x.jpg"], "must be named"),
        (["--score", "--paragraphs"], "leave --paragraphs out"),
        (["--score", "--beam-size", 2], "leave --beam-size out"),
        (["--backend", "torch"], "which backend torch cannot open"),
        (["--alternatives", 0], "from 1 to 100"),
    ],
)
def test_options_that_do_not_go_together(wild, run, options, message):
    assert message in run("translate", wild.exported, *options, stdin="goat\n", code=2).err
