"""A pair is scored in whole, the same alone and in company, and as the loss of evaluation has it."""

import pytest
import torch

from bmscale.data.batch import make_batch
from bmscale.data.tokenizer import EOS
from bmscale.evaluation.loss import batch_loss
from bmscale.inference.likelihood import log_probabilities
from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration

VOCABULARY = 40


@pytest.fixture(scope="module", params=["rope", "sinusoid"])
def model(request):
    torch.manual_seed(0)
    config = EncoderDecoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        positions=request.param,
        logit_scale=0.5,
    )
    return EncoderDecoderForConditionalGeneration(config).eval()


def ids(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [*torch.randint(4, VOCABULARY, (length,), generator=generator).tolist(), EOS]


SOURCES = [ids(length, 100 + length) for length in (3, 0, 40, 1, 8, 8, 300)]
TARGETS = [ids(length, 200 + length) for length in (5, 2, 1, 0, 64, 8, 200)]


@torch.no_grad()
def plain(model, source: list[int], target: list[int]) -> float:
    """One pair through the model's own logits."""
    inputs = torch.tensor([[EOS, *target[:-1]]])
    logits = model(input_ids=torch.tensor([source]), decoder_input_ids=inputs).logits
    return float(logits.log_softmax(-1).gather(-1, torch.tensor([target])[..., None]).sum())


@pytest.mark.parametrize("max_batch_tokens", [1, 60, 100_000])
def test_scores_are_those_of_single_pairs(model, max_batch_tokens):
    expected = [plain(model, *pair) for pair in zip(SOURCES, TARGETS, strict=True)]
    assert log_probabilities(model, SOURCES, TARGETS, max_batch_tokens) == pytest.approx(expected, rel=1e-5)


def test_scores_are_the_loss_of_validation(model):
    import numpy as np

    batch = make_batch(*([np.array(row) for row in side] for side in (SOURCES, TARGETS)))
    with torch.no_grad():
        nll = float(batch_loss(model, batch).nll)
    assert -sum(log_probabilities(model, SOURCES, TARGETS)) == pytest.approx(nll, rel=1e-5)


def test_a_target_longer_than_every_limit_counts_to_its_last_token(model):
    """The model means to have 12 positions; each token of 200 adds what the chain rule says."""
    source, target = SOURCES[0], TARGETS[-1]
    assert len(target) > 10 * model.config.max_position_embeddings
    whole = log_probabilities(model, [source], [target])[0]
    shorter = log_probabilities(model, [source], [target[:-1]])[0]
    with torch.no_grad():
        inputs = torch.tensor([[EOS, *target[:-1]]])
        logits = model(input_ids=torch.tensor([source]), decoder_input_ids=inputs).logits
    assert whole - shorter == pytest.approx(float(logits[0, -1].log_softmax(-1)[EOS]), abs=1e-3)


def test_no_pairs_and_batches_within_their_bound(model, monkeypatch):
    assert log_probabilities(model, [], []) == []
    slots = []
    forward = model.model.forward

    def spy(input_ids, decoder_input_ids, **options):
        slots.append(input_ids.numel() + decoder_input_ids.numel())
        return forward(input_ids=input_ids, decoder_input_ids=decoder_input_ids, **options)

    monkeypatch.setattr(model.model, "forward", spy)
    log_probabilities(model, SOURCES[:6], TARGETS[:6], 150)
    assert max(slots) <= 150
    assert len(slots) < 6
