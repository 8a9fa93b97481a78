"""Regularisers: which way they push, what they look past, and closed forms."""

import pytest
import torch

from fvgen_nerfstudio.regularizer import (
    disparity_loss,
    drop_opacities,
    solid_loss,
)

SIZE = (1, 6, 8)


def _full(value: float) -> torch.Tensor:
    return torch.full(SIZE, value)


def test_disparity_loss_is_the_relative_difference_of_inverse_depths():
    loss = disparity_loss(_full(4.0), _full(1.0), _full(2.0), _full(1.0))
    assert loss == pytest.approx(abs(1 / 4 - 1 / 2) / (1 / 2))
    scaled = disparity_loss(_full(40.0), _full(1.0), _full(20.0), _full(1.0))
    assert scaled == pytest.approx(float(loss))


@pytest.mark.parametrize(("depth", "sign"), [(1.0, -1), (4.0, 1)])
def test_disparity_loss_pulls_towards_the_measured_depth(depth, sign):
    rendered = _full(depth).requires_grad_()
    disparity_loss(rendered, _full(1.0), _full(2.0), _full(1.0)).backward()
    assert (rendered.grad * sign > 0).all()


def test_disparity_loss_looks_past_untrusted_and_transparent_pixels():
    target, weight, alpha = _full(2.0), _full(1.0), _full(1.0).requires_grad_()
    target[0, :3], weight[0, :3] = 1e6, 0.0
    depth = _full(2.0)
    depth[0, :3] = 9.0
    assert disparity_loss(depth, alpha, target, weight) == pytest.approx(0, abs=1e-7)
    see_through = torch.zeros(SIZE)
    assert disparity_loss(_full(9.0), see_through, _full(2.0), _full(1.0)) == 0
    wrong = disparity_loss(_full(3.0).requires_grad_(), alpha, _full(2.0), _full(1.0))
    wrong.backward()
    assert alpha.grad is None


def test_disparity_targets_may_be_of_any_size():
    target = torch.tensor([[[1.0, 2.0]]])
    depth = torch.cat([_full(1.0)[..., :4], _full(2.0)[..., 4:]], dim=-1)
    loss = disparity_loss(depth, _full(1.0), target, torch.ones(1, 1, 2))
    assert loss == pytest.approx(0, abs=1e-7)


def test_measured_surfaces_are_asked_to_be_opaque():
    alpha = _full(0.25).requires_grad_()
    weight = torch.tensor([[[0.0, 1.0]]])
    loss = solid_loss(alpha, weight)
    assert float(loss.detach()) == pytest.approx(0.75 / 2)
    loss.backward()
    assert alpha.grad is not None
    assert (alpha.grad[..., :4] == 0).all()
    assert (alpha.grad[..., 4:] < 0).all()


def test_dropped_opacities_keep_their_mean():
    opacities = torch.full((20_000,), 0.3)
    dropped = drop_opacities(opacities, 0.25, torch.Generator().manual_seed(1))
    zero = dropped == 0
    assert float(zero.float().mean()) == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(dropped[~zero], torch.full((int((~zero).sum()),), 0.4))
    assert float(dropped.mean()) == pytest.approx(0.3, rel=0.02)
    assert drop_opacities(torch.ones(10), 0.5, torch.Generator().manual_seed(1)).max() == 1


def test_the_same_step_drops_the_same_gaussians():
    opacities = torch.rand(50)
    first, second, other = (
        drop_opacities(opacities, 0.5, torch.Generator().manual_seed(step)) for step in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
