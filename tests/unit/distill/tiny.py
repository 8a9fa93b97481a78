"""A tiny backbone that fulfils the protocol, and roles made of it."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.diffusion.schedule import FlowSchedule
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.role import Roles

CHANNELS, FRAMES, HEIGHT, WIDTH = 2, 3, 4, 6


class TinyBackbone(nn.Module):
    """Two 3D convolutions with the time, and the mean of the context, added in the middle."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Conv3d(2 * CHANNELS, width, 3, padding=1), nn.Conv3d(width, width, 3, padding=1)]
        )
        self.time = nn.Linear(2, width)
        self.last = nn.Conv3d(width, CHANNELS, 3, padding=1)

    def forward(
        self,
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
        condition: Condition,
        *,
        return_mid: bool = False,
    ) -> tuple[Float[Tensor, "B C T h w"], tuple[Tensor, ...]]:
        h = self.blocks[0](torch.cat([x_t, condition.concat], dim=1))
        level = torch.stack([t.float() / 999, condition.context.float().mean(dim=(1, 2))], dim=1)
        h = torch.tanh(h + self.time(level)[:, :, None, None, None])
        h = torch.tanh(self.blocks[1](h))
        return self.last(h), (h,) if return_mid else ()


def tiny_batch(num: int = 2, seed: int = 0) -> TrainingBatch:
    rng = torch.Generator().manual_seed(seed)
    shape = (num, CHANNELS, FRAMES, HEIGHT, WIDTH)
    x0 = torch.randn(shape, generator=rng) * 0.5
    condition = Condition(
        concat=x0 + 0.1 * torch.randn(shape, generator=rng),
        context=torch.randn(num, 2, 3, generator=rng),
        null_context=torch.zeros(num, 2, 3),
    )
    return TrainingBatch(x0=x0, condition=condition)


def tiny_roles(seed: int = 0, prediction: str = "x0") -> Roles:
    torch.manual_seed(seed)
    teacher, student, critic = TinyBackbone(), TinyBackbone(), TinyBackbone()
    teacher.requires_grad_(False)
    disc = ClipDiscriminator((8,), width=8)
    nn.init.normal_(disc.heads[0].last.weight)  # pyright: ignore[reportArgumentType]
    return Roles(
        schedule=FlowSchedule(prediction="velocity" if prediction == "velocity" else "x0"),
        teacher=teacher,
        student=student,
        critic=critic,
        disc=disc,
        plain_disc=disc,
    )
