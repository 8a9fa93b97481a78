"""To twice the size, led by features: each fine pixel is a mean of the nine coarse ones near it."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class GuidedUpsampling(nn.Module):
    """Convex upsampling by two (Teed and Deng, "RAFT", ECCV 2020, section 3.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, 36, 1)
        )
        last = self.net[2]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        last.bias.data[16:20] = 3.0  # starts close to repeating the centre

    def forward(
        self, values: Float[Tensor, "N H W"], features: Float[Tensor, "N C H W"]
    ) -> Float[Tensor, "N H2 W2"]:
        """Return the map at twice the size."""
        weight = self.net(features).float().unflatten(1, (9, 4)).softmax(dim=1)
        padded = F.pad(values[:, None], (1, 1, 1, 1), mode="replicate")
        near = F.unfold(padded, 3).unflatten(2, values.shape[-2:])
        return F.pixel_shuffle((weight * near[:, :, None]).sum(dim=1), 2)[:, 0]
