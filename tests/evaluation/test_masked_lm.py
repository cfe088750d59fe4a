"""Masked tokens are scored as the model scores them alone, single and packed, in any batch."""

import numpy as np
import pytest
import torch

from bmscale.data.batch import MaskedBatch, masked_batch
from bmscale.data.rows import Row
from bmscale.errors import BadInput
from bmscale.evaluation.masked_lm import evaluate_masked_lm
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


def masked(length: int) -> tuple[np.ndarray, np.ndarray]:
    """A text with masks in it, and what was there."""
    generator = np.random.default_rng(length)
    ids = np.array([0, *generator.integers(5, V, length - 2), 2], dtype=np.int64)
    hidden = (generator.random(length) < 0.3) & (ids > 2)
    return np.where(hidden, MASK, ids), np.where(hidden, ids, -100)


TEXTS = [masked(length) for length in (20, 3, 14, 31, 9, 60)]


def alone(model):
    """Negative log-likelihood, masked tokens and right ones, text by text from the logits."""
    nll, tokens, correct = 0.0, 0, 0
    for ids, labels in TEXTS:
        with torch.no_grad():
            log_p = model(torch.tensor(ids)[None]).logits[0].log_softmax(-1)
        for place in np.flatnonzero(labels != -100):
            nll -= float(log_p[place, labels[place]])
            tokens += 1
            correct += int(log_p[place].argmax()) == labels[place]
    return nll, tokens, correct


def batch(*rows: list[tuple[np.ndarray, np.ndarray]]) -> MaskedBatch:
    """Each row holds some texts, one behind the other."""
    whole = [(np.concatenate([ids for ids, _ in texts]), np.concatenate([was for _, was in texts])) for texts in rows]
    packed = [
        Row(ids, ids, np.concatenate([np.full(len(text), number) for number, (text, _) in enumerate(texts, start=1)]))
        for (ids, _), texts in zip(whole, rows, strict=True)
    ]
    return masked_batch(packed, whole)


BATCHES = {
    "alone": [batch([text]) for text in TEXTS],
    "padded": [batch(*([text] for text in TEXTS))],
    "packed": [batch(TEXTS[:3]), batch(TEXTS[3:])],
    "packed and padded": [batch(TEXTS[:1], TEXTS[1:2], TEXTS[2:])],
}


@pytest.mark.parametrize("form", BATCHES)
def test_the_score_is_that_of_single_texts(model, form):
    nll, tokens, correct = alone(model)
    score = evaluate_masked_lm(model, iter(BATCHES[form]))
    assert (score.tokens, score.correct) == (tokens, correct)
    assert score.loss == pytest.approx(nll / tokens, rel=1e-5)
    assert score.accuracy == correct / tokens


def test_right_answers_are_counted(model):
    ids, labels = TEXTS[3]
    with torch.no_grad():
        best = model(torch.tensor(ids)[None]).logits[0].argmax(-1).numpy()
    assert evaluate_masked_lm(model, [batch([(ids, np.where(labels != -100, best, -100))])]).accuracy == 1


def test_nothing_masked_is_said(model):
    with pytest.raises(BadInput, match="batches: no token is masked"):
        evaluate_masked_lm(model, [batch([(TEXTS[0][0], np.full(20, -100))])])
