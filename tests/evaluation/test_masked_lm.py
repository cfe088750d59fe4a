"""Masked tokens are scored as the model scores them alone, single and packed, in any batch."""

import numpy as np
import pytest
import torch

from bmscale.errors import BadInput
from bmscale.evaluation.masked_lm import MaskedRow, evaluate_masked_lm
from bmscale.model.tasks import TASKS

V, MASK = 40, 4


@pytest.fixture(scope="module")
def model():
    task = TASKS["masked_lm"]
    shape = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = task.model(task.configure(**shape, mask_token_id=MASK)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def row(length: int) -> MaskedRow:
    generator = np.random.default_rng(length)
    ids = np.array([0, *generator.integers(5, V, length - 2), 2], dtype=np.uint16)
    masked = (generator.random(length) < 0.3) & (ids > 2)
    return MaskedRow(np.where(masked, MASK, ids), np.where(masked, ids.astype(int), -100))


ROWS = [row(length) for length in (20, 3, 14, 31, 9, 60)]


def alone(model, rows):
    """Negative log-likelihood, masked tokens and right ones, text by text from the logits."""
    nll, tokens, correct = 0.0, 0, 0
    for text in rows:
        with torch.no_grad():
            log_p = model(torch.tensor(text.input_ids.astype(int))[None]).logits[0].log_softmax(-1)
        for place in np.flatnonzero(text.labels != -100):
            nll -= float(log_p[place, text.labels[place]])
            tokens += 1
            correct += int(log_p[place].argmax()) == text.labels[place]
    return nll, tokens, correct


def packed(rows) -> MaskedRow:
    segments = np.concatenate([np.full(len(text.input_ids), number) for number, text in enumerate(rows, start=1)])
    ids, labels = (np.concatenate([getattr(text, name) for text in rows]) for name in ("input_ids", "labels"))
    return MaskedRow(ids, labels, segments)


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 10_000])
@pytest.mark.parametrize("rows", [ROWS, [packed(ROWS[:3]), packed(ROWS[3:])], [*ROWS[:2], packed(ROWS[2:])]])
def test_the_score_is_that_of_single_texts(model, rows, max_batch_tokens):
    nll, tokens, correct = alone(model, ROWS)
    score = evaluate_masked_lm(model, iter(rows), max_batch_tokens=max_batch_tokens)
    assert (score.tokens, score.correct) == (tokens, correct)
    assert score.loss == pytest.approx(nll / tokens, rel=1e-5)
    assert score.accuracy == correct / tokens


def test_right_answers_are_counted(model):
    text = ROWS[3]
    with torch.no_grad():
        best = model(torch.tensor(text.input_ids.astype(int))[None]).logits[0].argmax(-1).numpy()
    right = MaskedRow(text.input_ids, np.where(text.labels != -100, best, -100))
    assert evaluate_masked_lm(model, [right]).accuracy == 1


def test_nothing_masked_is_said(model):
    with pytest.raises(BadInput, match="rows: no token is masked"):
        evaluate_masked_lm(model, [MaskedRow(ROWS[0].input_ids, np.full(20, -100))])
