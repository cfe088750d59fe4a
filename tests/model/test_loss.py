"""Cross-entropy: PyTorch's value, and the chunked form has the plain one's value and gradients."""

import pytest
import torch
from torch.nn import functional as F

from bmscale.model.loss import cross_entropy, linear_cross_entropy

T, D, V = 23, 8, 31


@pytest.fixture
def labels():
    labels = torch.randint(V, (T,), generator=torch.Generator().manual_seed(1))
    labels[[0, 5, 22]] = -100
    return labels


def inputs(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, D, generator=generator).to(dtype).requires_grad_() for n in (T, V))
    return hidden, weight


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain_is_pytorchs(labels, smoothing):
    hidden, weight = inputs(torch.float32)
    logits = hidden @ weight.T
    sums = cross_entropy(logits.view(1, T, V), labels.view(1, T), smoothing)
    expected = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing, ignore_index=-100)
    torch.testing.assert_close(sums.loss, expected)
    torch.testing.assert_close(sums.nll, F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100))
    assert int(sums.tokens) == T - 3
    assert not sums.nll.requires_grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 7, 20, 100, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_chunks_change_nothing(labels, smoothing, chunk, dtype):
    hidden, weight = inputs(dtype)
    sums = linear_cross_entropy(hidden, weight, labels, smoothing, chunk)
    (0.37 * sums.loss).backward()
    hidden_again, weight_again = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    plain = cross_entropy(hidden_again @ weight_again.T, labels, smoothing)
    (0.37 * plain.loss).backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for got, expected in (
        (sums.loss, plain.loss),
        (sums.nll, plain.nll),
        (hidden.grad, hidden_again.grad),
        (weight.grad, weight_again.grad),
    ):
        assert got is not None
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * 3)
    assert sums.loss.dtype == torch.promote_types(dtype, torch.float32)


def test_gradient_is_that_of_finite_differences(labels):
    hidden, weight = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, 0.1, 7).loss, (hidden, weight))


def test_the_graph_can_be_walked_twice(labels):
    hidden, weight = inputs(torch.float32)
    loss = linear_cross_entropy(hidden, weight, labels).loss
    first = torch.autograd.grad(loss * 3, weight, retain_graph=True)[0]
    second = torch.autograd.grad(loss * 3, weight)[0]
    assert torch.equal(first, second)


def test_ignored_rows_are_never_multiplied(labels):
    hidden, weight = inputs(torch.float32)
    poisoned = hidden.detach().clone()
    poisoned[labels == -100] = torch.nan
    poisoned.requires_grad_()
    sums = linear_cross_entropy(poisoned, weight, labels, 0.1)
    sums.loss.backward()
    assert sums.loss.isfinite()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert poisoned.grad is not None
    assert (poisoned.grad[labels == -100] == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_to_count_gives_zero_loss_and_zero_gradients(smoothing):
    hidden, weight = inputs(torch.float32)
    nothing = torch.full((T,), -100)
    sums = linear_cross_entropy(hidden, weight, nothing, smoothing)
    sums.loss.backward()
    assert (sums.loss.item(), sums.nll.item(), sums.tokens.item()) == (0, 0, 0)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not hidden.grad.any()
    assert not weight.grad.any()
    assert cross_entropy(hidden @ weight.T, nothing, smoothing).loss.item() == 0


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_what_is_right_is_counted_without_gradients(labels, chunk):
    hidden, weight = inputs(torch.float32)
    logits = (hidden @ weight.T).detach()
    labels[1:9] = logits[1:9].argmax(-1)
    expected = int((logits.argmax(-1) == labels).sum())
    assert expected >= 8
    with torch.no_grad():
        for sums in (linear_cross_entropy(hidden, weight, labels, 0.1, chunk), cross_entropy(logits, labels)):
            assert sums.correct is not None
            assert int(sums.correct) == expected
    assert linear_cross_entropy(hidden, weight, labels, 0.1, chunk).correct is None
    assert cross_entropy(logits, labels).correct is None


def test_the_mean_is_over_labels_or_over_what_is_given(labels):
    hidden, weight = inputs(torch.float32)
    sums = linear_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(sums.mean(), sums.loss / (T - 3))
    torch.testing.assert_close(sums.mean(10), sums.loss / 10)
    assert linear_cross_entropy(hidden, weight, torch.full((T,), -100)).mean().item() == 0


def test_evaluation_computes_no_gradient(labels):
    hidden, weight = inputs(torch.float32)
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, labels).loss.requires_grad
    sums = linear_cross_entropy(hidden.detach(), weight, labels)
    sums.loss.backward()
    assert weight.grad is not None


def test_autocast_multiplies_in_bf16_and_gives_fp32_gradients(labels):
    hidden, weight = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        sums = linear_cross_entropy(hidden, weight, labels, 0.1, 7)
    sums.loss.backward()
    narrow = linear_cross_entropy(hidden.detach().bfloat16(), weight.detach().bfloat16(), labels, 0.1, 7)
    assert torch.equal(sums.loss, narrow.loss)
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_labels_of_no_probability_have_a_loss_all_the_same(label_smoothing):
    """Probabilities below the smallest fp32 number: their logarithm must come from the logits."""
    hidden = torch.tensor([[1.0], [300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    labels = torch.tensor([0, 1])
    sums = linear_cross_entropy(hidden, weight, labels, label_smoothing)
    plain = F.cross_entropy(hidden @ weight.T, labels, reduction="sum", label_smoothing=label_smoothing)
    assert float(sums.loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    got, wanted = (torch.autograd.grad(loss, (hidden, weight)) for loss in (sums.loss, plain))
    for mine, truth in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, truth)
