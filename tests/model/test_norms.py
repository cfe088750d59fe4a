"""RMSNorm: fp32 inside, and the fast backward pass on CPU is the right one."""

import pytest
import torch
from torch.nn import functional as F

from bmscale.model.norms import LayerNorm, RMSNorm


def test_bf16_is_normalised_in_fp32():
    torch.manual_seed(0)
    x = torch.randn(5, 64).bfloat16()
    norm = RMSNorm(64, 1e-6).bfloat16()
    norm.weight.data.normal_()
    wide = x.float()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.float()
    torch.testing.assert_close(norm(x).float(), expected.bfloat16().float(), rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4, 16), (0, 16), (7, 16)])
def test_gradients_are_those_of_the_definition(dtype, shape):
    torch.manual_seed(1)
    norm = RMSNorm(16, 1e-3).to(dtype)
    norm.weight.data.normal_()
    x, dy = (torch.randn(shape, dtype=dtype) + 0.5).requires_grad_(), torch.randn(shape, dtype=dtype)
    norm(x).backward(dy)
    x_again, weight = (tensor.detach().double().requires_grad_() for tensor in (x, norm.weight))
    F.rms_norm(x_again, (16,), weight, 1e-3).backward(dy.double())
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}[dtype]
    assert x.grad is not None
    assert norm.weight.grad is not None
    torch.testing.assert_close(x.grad.double(), x_again.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(norm.weight.grad.double(), weight.grad, rtol=tolerance, atol=tolerance)


def test_a_dy_that_is_not_contiguous():
    x = torch.randn(4, 6, 8, dtype=torch.float64, requires_grad=True)
    norm = RMSNorm(8, 1e-6).double()
    assert torch.autograd.gradcheck(lambda x: norm(x).transpose(0, 1), (x,))


def test_a_backward_pass_inside_autocast_is_that_outside():
    norm = RMSNorm(8, 1e-6)
    gradients = []
    for inside in (False, True):
        x = torch.linspace(-1, 2, 24).view(3, 8).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = norm(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            gradients.append(torch.autograd.grad(y.float().sum(), (x, norm.weight)))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_autocast_gives_the_type_of_the_next_product():
    with torch.autocast("cpu", torch.bfloat16):
        assert RMSNorm(8, 1e-6)(torch.ones(2, 8)).dtype == torch.bfloat16
        assert LayerNorm(8)(torch.ones(2, 8)).dtype == torch.bfloat16
    assert RMSNorm(8, 1e-6)(torch.ones(2, 8)).dtype == torch.float32
