"""Every token is scored once with the context that was promised, and as the lm-eval harness scores it."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from bmscale.data.tokenizer import BOS, EOS, Tokenizer, TokenizerConfig, train_tokenizer
from bmscale.errors import BadInput
from bmscale.evaluation.language_model import continuation_likelihoods, evaluate_language_model
from bmscale.model import DecoderOnlyConfig, DecoderOnlyForCausalLM
from bmscale.model.folder import load_model, write_model_folder

V = 40
TEXTS = [
    "the old fisherman rowed across the quiet lake before sunrise.",
    "nobody knew where the letters came from, or why.",
    "she counted seventeen boats near the broken bridge.",
    "my neighbour keeps bees, hens and one stubborn goat.",
]


def build(**options) -> DecoderOnlyForCausalLM:
    shape = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = DecoderOnlyForCausalLM(DecoderOnlyConfig(**{**shape, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)  # decides, and minds what it has read
    return model


@pytest.fixture(scope="module")
def model():
    return build()


def document(length: int) -> np.ndarray:
    """So many tokens behind <s>, </s> counted."""
    middle = np.random.default_rng(length).integers(4, V, length - 1)
    return np.array([BOS, *middle, EOS], dtype=np.uint16)


DOCUMENTS = [document(length) for length in (5, 1, 37, 8, 16, 9, 23, 64)]


@torch.no_grad()
def brute_force(model, documents, window: int, stride: int) -> float:
    """Each token by a forward pass of its own over the context that its window has."""
    total = 0.0
    for ids in documents:
        last = len(ids) - 1
        for place in range(1, last + 1):
            # Windows end at `window`, then every `stride` tokens, then at the end of the document.
            end = window if place <= window else window + math.ceil((place - window) / stride) * stride
            first = max(0, min(end, last) - window)
            logits = model(torch.tensor(ids[first:place].astype(int))[None]).logits[0, -1]
            total -= float(logits.log_softmax(-1)[int(ids[place])])
    return total


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 4), (8, 1), (8, 3), (1, 1), (100, 7)])
@pytest.mark.parametrize("max_batch_tokens", [1, 50, 100_000])
def test_every_token_is_scored_once_with_its_context(model, window, stride, max_batch_tokens):
    score = evaluate_language_model(
        model, iter(DOCUMENTS), 700, window=window, stride=stride, max_batch_tokens=max_batch_tokens
    )
    assert score.tokens == sum(len(ids) - 1 for ids in DOCUMENTS)
    assert score.nll_sum == pytest.approx(brute_force(model, DOCUMENTS, window, stride), rel=1e-5)


def test_documents_within_the_window_have_the_loss_of_the_model(model):
    score = evaluate_language_model(model, DOCUMENTS, 700, window=64, stride=3)
    with torch.no_grad():
        losses = [model(ids, labels=ids).loss for ids in (torch.tensor(ids.astype(int))[None] for ids in DOCUMENTS)]
    expected = sum(float(loss) * (len(ids) - 1) for loss, ids in zip(losses, DOCUMENTS, strict=True))
    assert score.nll_sum == pytest.approx(expected, rel=1e-6)
    assert score.loss == pytest.approx(expected / score.tokens, rel=1e-6)
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert score.bits_per_byte == pytest.approx(expected / math.log(2) / 700, rel=1e-6)


def test_windows_of_a_whole_stride_are_disjoint(model):
    ids = document(64)
    score = evaluate_language_model(model, [ids], 1, window=16, stride=16)
    parts = torch.tensor(np.stack([ids[start : start + 17] for start in range(0, 64, 16)]).astype(int))
    with torch.no_grad():
        assert score.nll_sum == pytest.approx(float(model(parts, labels=parts).loss) * 64, rel=1e-6)


def test_tokens_that_are_read_stay_within_the_batch(model, monkeypatch):
    shapes = []
    forward = DecoderOnlyForCausalLM.forward

    def spy(self, input_ids, **options):
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(DecoderOnlyForCausalLM, "forward", spy)
    evaluate_language_model(model, DOCUMENTS * 12, 1, window=16, stride=8, max_batch_tokens=64)
    assert max(rows * width for rows, width in shapes) == 64
    assert max(width for _, width in shapes) == 16
    padded, read = sum(rows * width for rows, width in shapes), 12 * (5 + 1 + 16 * 4 + 8 + 16 + 9 + 2 * 16 + 7 * 16)
    assert read <= padded < 1.15 * read


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"window": 0}, "window: must be at least 1; got 0"),
        ({"stride": 0}, "stride: must be at least 1 and at most the window, 8; got 0"),
        ({"stride": 9}, "stride: must be at least 1 and at most the window, 8; got 9"),
        ({"text_bytes": 0}, "text_bytes: must be at least 1; got 0"),
        ({"documents": [np.array([BOS])]}, "documents: there is nothing to score"),
    ],
)
def test_what_cannot_be_scored_is_said(model, changed, message):
    options: dict[str, Any] = {"documents": DOCUMENTS, "text_bytes": 1, "window": 8, "stride": 8, **changed}
    with pytest.raises(BadInput, match=message):
        evaluate_language_model(model, **options)


def test_continuations_alone_and_in_company(model):
    contexts = [[BOS], document(20)[:-1].tolist(), [BOS, 7], document(9)[:-1].tolist(), [BOS]]
    continuations = [[9, 5, 5], [4], [], [30, 2], document(12)[1:].tolist()]
    together = continuation_likelihoods(model, contexts, continuations, max_batch_tokens=40)
    for context, continuation, found in zip(contexts, continuations, together, strict=True):
        ids = torch.tensor([*context, *continuation])
        with torch.no_grad():
            log_p = model(ids[None]).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        target = ids[len(context) :]
        expected = float(log_p.gather(1, target[:, None]).sum()) if len(target) else 0.0
        assert found.log_likelihood == pytest.approx(expected, rel=1e-5)
        assert found.is_greedy == bool((log_p[: len(target)].argmax(-1) == target).all())
    with torch.no_grad():
        best = int(model(torch.tensor([[BOS, 7]])).logits[0, -1].argmax())
    assert continuation_likelihoods(model, [[BOS, 7]], [[best]])[0].is_greedy


def test_too_long_a_context_loses_its_beginning(model):
    ids = document(40).tolist()
    whole = continuation_likelihoods(model, [ids[:-4]], [ids[-4:]], window=10)
    assert whole == continuation_likelihoods(model, [ids[-11:-4]], [ids[-4:]])
    with pytest.raises(BadInput, match="contexts: must have at least one token"):
        continuation_likelihoods(model, [[]], [[5]])
    with pytest.raises(BadInput, match="got 1 and 2"):
        continuation_likelihoods(model, [[5]], [[5], [6]])


@pytest.fixture
def written(tmp_path):
    """A model folder with its tokenizer."""
    spiece = tmp_path / "spiece.model"
    spiece.write_bytes(train_tokenizer(TEXTS, TokenizerConfig(type="bpe", vocabulary_size=320)))
    model = build(vocab_size=320, max_position_embeddings=64)
    write_model_folder(tmp_path / "m", model.config, model.named_parameters(), spiece, {})
    return tmp_path / "m"


@pytest.mark.filterwarnings("ignore")  # of the harness
def test_the_harness_finds_the_same(written):
    pytest.importorskip("lm_eval", reason="the lm-eval harness is not installed")
    from lm_eval.api.instance import Instance  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from transformers import AutoTokenizer

    model, tokenizer = load_model(written), Tokenizer.load(written / "spiece.model")
    options = {"tokenizer": AutoTokenizer.from_pretrained(written), "device": "cpu", "batch_size": 3}

    def requests(kind, arguments):
        return [Instance(kind, {}, row, number) for number, row in enumerate(arguments)]

    pairs = [(text[:cut], text[cut:]) for text in TEXTS for cut in (0, text.index(" "), len(text) - 1)]
    contexts = [[BOS, *tokenizer.encode(context)[:-1]] for context, _ in pairs]
    whole = [[BOS, *tokenizer.encode(context + continuation)[:-1]] for context, continuation in pairs]
    ours = continuation_likelihoods(
        model, contexts, [ids[len(context) :] for ids, context in zip(whole, contexts, strict=True)]
    )
    # Its cache of logits is off: for the same text cut at several places it takes those of the first cut (0.4.13).
    theirs = HFLM(model, logits_cache=False, **options).loglikelihood(
        requests("loglikelihood", pairs), disable_tqdm=True
    )
    assert [found.log_likelihood for found in ours] == pytest.approx([found[0] for found in theirs], rel=1e-4)
    assert [found.is_greedy for found in ours] == [found[1] for found in theirs]

    texts = [*TEXTS, " ".join(TEXTS), " ".join(TEXTS * 2)]
    rolled = [
        evaluate_language_model(model, [np.array([BOS, *tokenizer.encode(text)[:-1]])], 1, window=24, stride=24).nll_sum
        for text in texts
    ]
    # Unless it is told not to, the harness puts <s> before a text that has one and scores the second.
    harness = HFLM(model, add_bos_token=False, max_length=24, **options)
    theirs = harness.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]))
    assert [-nll for nll in rolled] == pytest.approx(theirs, rel=1e-4)
