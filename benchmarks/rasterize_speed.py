"""Time the Gaussian rasteriser, forward and backward.

`python benchmarks/rasterize_speed.py --device cpu --threads 2`; with `--cold` the first call of a
fresh installation, which compiles the CPU kernels.
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from fvgen_recon.render.gaussian import rasterize


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is rendered and how often."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the Gaussians are rendered."""
    num_gaussians: int = 20_000
    """Size of the splat."""
    height: int = 320
    """Image height in pixels."""
    width: int = 512
    """Image width in pixels."""
    sh_degree: int = 3
    """Degree of the harmonics."""
    render_mode: str = "RGB"
    """RGB, or RGB+ED with the expected depth behind it."""
    num_repeats: int = 11
    """Timed runs, after two to warm up."""
    threads: int = 2
    """CPU threads."""
    cold: bool = False
    """Time the first call only, with nothing compiled beforehand."""


def make_splat(config: Config) -> dict[str, Tensor]:
    """Draw Gaussians in a ball that fills the image, large enough to leave no holes.

    Their sizes shrink as their number grows, as those of a splat do.
    """
    rng = torch.Generator().manual_seed(0)
    num = config.num_gaussians

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    centre = torch.tensor([0.0, 0.0, 4.0])
    size = 0.027 * (20_000 / num) ** 0.5
    splat = {
        "means": draw(num, 3) * torch.tensor([1.5, 1.0, 1.0]) + centre,
        "quats": draw(num, 4),
        "scales": size * torch.exp(0.5 * draw(num, 3)),
        "opacities": torch.rand(num, generator=rng),
        "colors": 0.3 * draw(num, 16, 3),
        "viewmats": torch.eye(4)[None],
    }
    return {k: v.to(config.device).requires_grad_() for k, v in splat.items()}


def time_call(splat: dict[str, Tensor], config: Config) -> tuple[float, float, float]:
    """Return the seconds of one forward and one backward pass and tiles touched a Gaussian."""
    focal, height, width = 0.8 * config.width, config.height, config.width
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    start = clock(config)
    colors, alphas, info = rasterize(
        **splat,
        Ks=K[None].to(config.device),
        width=width,
        height=height,
        sh_degree=config.sh_degree,
        packed=False,
        absgrad=True,
        render_mode=config.render_mode,  # type: ignore[arg-type]
    )
    middle = clock(config)
    (colors.square().mean() + alphas.mean()).backward()
    return middle - start, clock(config) - middle, len(info["flatten_ids"]) / config.num_gaussians


def clock(config: Config) -> float:
    """Seconds, once the device has done its work."""
    if config.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def main(config: Config) -> None:
    """Print medians of forward, backward and both."""
    torch.set_num_threads(config.threads)
    splat = make_splat(config)
    where = f"{config.num_gaussians} Gaussians, {config.width}x{config.height}, {config.device}"
    if config.cold:
        with tempfile.TemporaryDirectory() as folder:
            # Numba reads this when it is first imported: at the first call on the CPU.
            os.environ["NUMBA_CACHE_DIR"] = folder
            forward, backward, _ = time_call(splat, config)
        print(f"{where}: first call {forward:.2f} s + {backward:.2f} s")
        return
    runs = [time_call(splat, config) for _ in range(config.num_repeats + 2)][2:]
    forward, backward, tiles = zip(*runs, strict=True)
    both = [f + b for f, b in zip(forward, backward, strict=True)]
    print(
        f"{where}, {config.threads} threads, {tiles[0]:.1f} tiles a Gaussian: "
        f"forward {statistics.median(forward) * 1e3:.1f} ms, "
        f"backward {statistics.median(backward) * 1e3:.1f} ms, "
        f"both {statistics.median(both) * 1e3:.1f} ms "
        f"({min(both) * 1e3:.1f} to {max(both) * 1e3:.1f}), {config.num_repeats} runs"
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
