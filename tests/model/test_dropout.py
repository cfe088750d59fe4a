import pytest
import torch

from bmscale.model.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(p, dtype):
    torch.manual_seed(0)
    x = torch.full((400, 501), 2.0, dtype=dtype)
    out = Dropout(p)(x)
    kept = out != 0
    assert out.dtype == dtype
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=0.005)  # five deviations of 200,400 draws
    assert torch.allclose(out[kept].float(), torch.tensor(2 / (1 - p)), rtol=1e-2 if dtype == torch.bfloat16 else 1e-4)
    # Neither rows nor columns, nor the four elements of one drawn number, hang together.
    for share in (kept.float().mean(0), kept.float().mean(1)):
        assert float(share.std()) < 2 * (p * (1 - p) / 400) ** 0.5
    flat = kept.flatten().float()
    for distance in (1, 2, 3, 4):
        pairs = torch.stack([flat[:-distance], flat[distance:]])
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.012


def test_gradient_goes_where_values_went():
    torch.manual_seed(1)
    x = torch.randn(7, 9, requires_grad=True)
    out = Dropout(0.3)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, torch.where(out != 0, (out / x).detach(), 0.0))


def test_it_follows_torchs_generator():
    x, dropout = torch.ones(3, 5), Dropout(0.5)
    torch.manual_seed(2)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(2)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_outside_of_training():
    x = torch.ones(3, 5)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
