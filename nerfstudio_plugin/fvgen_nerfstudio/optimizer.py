"""Adam in one kernel a tensor where there is a GPU."""

from dataclasses import dataclass
from typing import Any

import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig


@dataclass
class FusedAdamConfig(AdamOptimizerConfig):
    """nerfstudio's Adam; PyTorch's own choice on a GPU takes a dozen launches a tensor."""

    def setup(self, params: Any) -> torch.optim.Optimizer:
        """Return the optimizer of some parameters."""
        params = list(params)
        return torch.optim.Adam(
            params,
            lr=self.lr,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=all(param.is_cuda for param in params) or None,
        )
