"""Time the point renderers: `python benchmarks/render_speed.py --device cpu`."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from fvgen_recon.geometry.projection import unproject_depth
from fvgen_recon.render.guidance import GuidanceConfig, render_guidance, render_surface
from fvgen_recon.render.point import render_points
from fvgen_recon.types import Anchor, Cameras, PointCloud, Scene, Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is rendered and how often."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the points are rendered."""
    num_points: int = 300_000
    """Size of the cloud."""
    num_frames: int = 16
    """Cameras along a path of a tenth of the scene's depth."""
    height: int = 320
    """Image height in pixels."""
    width: int = 512
    """Image width in pixels."""
    radius_ndc: float = 0.01
    """Disk radius in units of half the shorter image side."""
    num_repeats: int = 7
    """Timed runs, after one warm-up."""
    threads: int = 2
    """CPU threads."""


def make_wavy_cloud(config: Config) -> PointCloud:
    """Points on a wavy surface that fills the first camera's image, as a depth map would give."""
    scale = (config.num_points / (config.height * config.width)) ** 0.5
    height, width = round(config.height * scale), round(config.width * scale)
    camera = make_path(config, 1).resize(height, width)[0]
    rows, columns = torch.arange(height) / height, torch.arange(width) / width
    depth = 4 + (9 * rows).sin()[:, None] + (13 * columns).cos()[None]
    xyz = unproject_depth(depth, camera)[0].reshape(-1, 3)
    rgb = torch.rand(xyz.shape, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(len(xyz))
    view = (torch.arange(len(xyz)) % 2).long()  # Half of the points come from either end's photo.
    return PointCloud(xyz=xyz, rgb=rgb, confidence=zeros + 1, view=view)


def make_scene(cameras: Cameras) -> tuple[Scene, Trajectory]:
    """Photos at both ends of a path, and the path with them as its anchors."""
    last = len(cameras) - 1
    images = torch.rand(2, 3, cameras.height, cameras.width).to(cameras.c2w.device)
    scene = Scene(images=images, cameras=cameras[[0, last]], names=("first", "last"))
    ends = (Anchor(frame=0, view=0), Anchor(frame=last, view=1))
    return scene, Trajectory(cameras=cameras, anchors=ends)


def make_path(config: Config, num_frames: int) -> Cameras:
    """Cameras that slide sideways."""
    c2w = torch.eye(4).repeat(num_frames, 1, 1)
    c2w[:, 0, 3] = torch.linspace(0, 0.4, num_frames)
    focal, h, w = 0.9 * config.width, config.height, config.width
    K = torch.tensor([[focal, 0, w / 2], [0, focal, h / 2], [0, 0, 1]]).repeat(num_frames, 1, 1)
    return Cameras(c2w=c2w, K=K, height=h, width=w)


def time_calls(render: Callable[[], Tensor], config: Config) -> list[float]:
    """Return the seconds of each repeat, the first run left out."""
    seconds = []
    for _ in range(config.num_repeats + 1):
        start = time.perf_counter()
        render().sum().item()  # Waits for the GPU.
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main(config: Config) -> None:
    """Print median, least and greatest time of each renderer, and of all that guidance takes."""
    torch.set_num_threads(config.threads)
    cloud = make_wavy_cloud(config).to(config.device)
    cameras = make_path(config, config.num_frames).to(config.device)
    surface = GuidanceConfig()
    scene, trajectory = make_scene(cameras)
    renderers = {
        "points": lambda: render_points(cloud, cameras, radius_ndc=config.radius_ndc).alpha,
        "surface": lambda: render_surface(cloud, cameras, surface).alpha,
        "guidance": lambda: render_guidance(scene, cloud, trajectory).frames,
    }
    print(f"{config.num_frames} frames of {config.height}x{config.width}, {len(cloud)} points")
    for name, render in renderers.items():
        seconds = time_calls(render, config)
        print(
            f"{name} on {config.device}: median {statistics.median(seconds):.4f} s, "
            f"min {min(seconds):.4f} s, max {max(seconds):.4f} s"
        )
    if config.device == "cuda":
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
