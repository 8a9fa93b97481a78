"""A tiny renderer with exact depth: a slanted textured wall with a textured ball before it."""

import math

import numpy as np
import torch

from fvgen_recon.geometry.rigid import look_at
from fvgen_recon.types import Cameras, Scene

BALL = (np.array([0.1, 0.0, -0.3]), 0.55)
WALL_NORMAL = np.array([0.25, 0.1, -1.0]) / np.linalg.norm([0.25, 0.1, -1.0])
WALL_OFFSET = -1.2  # points x with normal . x = offset


def stage_cameras(angles_deg: tuple[float, ...], height: int = 60, width: int = 80) -> Cameras:
    """Cameras at distance 4 from the origin on a horizontal arc."""
    angle = torch.tensor([math.radians(a) for a in angles_deg])
    position = 4 * torch.stack([angle.sin(), 0 * angle - 0.2, -angle.cos()], dim=-1)
    c2w = look_at(position, torch.zeros_like(position), torch.tensor([0.0, -1.0, 0.0]))
    K = torch.tensor([[1.3 * width, 0, width / 2], [0, 1.3 * width, height / 2], [0, 0, 1.0]])
    return Cameras(c2w=c2w, K=K.expand(len(angle), 3, 3).clone(), height=height, width=width)


def texture(points: np.ndarray, seed: int) -> np.ndarray:
    """Smooth solid colours: sums of waves in random directions."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(24, 3)) * rng.uniform(3, 14, size=(24, 1))
    phase, mix = rng.uniform(0, 6.3, size=24), rng.normal(size=(24, 3))
    return 0.5 + 0.09 * np.sin(points @ waves.T + phase) @ mix


def render_view(c2w: np.ndarray, K: np.ndarray, height: int, width: int):
    """Return an image (3 H W) and z-depth (H W)."""
    y, x = np.mgrid[:height, :width] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(K).T @ c2w[:3, :3].T
    eye = c2w[:3, 3]
    wall = (WALL_OFFSET - WALL_NORMAL @ eye) / (rays @ WALL_NORMAL)
    centre, radius = BALL
    a, b = (rays**2).sum(-1), rays @ (eye - centre)
    root = b**2 - a * (((eye - centre) ** 2).sum() - radius**2)
    ball = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
    depth = np.minimum(wall, ball)
    points = eye + rays * depth[..., None]
    colour = np.where((ball < wall)[..., None], texture(points, 1), texture(points, 2))
    return colour.clip(0, 1).transpose(2, 0, 1), depth


def make_stage(angles_deg: tuple[float, ...] = (-8, 0, 8)) -> tuple[Scene, torch.Tensor]:
    """Return a scene with its true depths (V H W)."""
    cameras = stage_cameras(angles_deg)
    views = [
        render_view(c.numpy().astype(float), k.numpy().astype(float), 60, 80)
        for c, k in zip(cameras.c2w, cameras.K, strict=True)
    ]
    scene = Scene(
        images=torch.tensor(np.stack([v[0] for v in views])).float(),
        cameras=cameras,
        names=tuple(f"{i}.png" for i in range(len(views))),
    )
    return scene, torch.tensor(np.stack([v[1] for v in views])).float()
