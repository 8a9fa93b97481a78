"""What a fusion gains on views of scenes that it was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fvgen_recon.evaluation.comparison import Judge
from fvgen_recon.evaluation.metric import psnr
from fvgen_recon.fusion.example import Example
from fvgen_recon.fusion.network import FusionNetwork
from fvgen_recon.fusion.sample import unpack_planes

RULES = ("splat", "frame", "mean", "learned")
"""What is compared: each alone, the plain rule, the network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionFigures:
    """One view measured under each of `RULES`."""

    scene: str
    name: str
    num_inputs: int
    num_members: int
    psnr: tuple[float, ...]
    """In dB."""
    distance: tuple[float, ...]
    """Perceptual distance; empty where there is no network for it."""


@torch.no_grad()
def measure_examples(
    network: FusionNetwork,
    examples: Sequence[Example],
    device: torch.device,
    judge: Judge | None = None,
) -> list[FusionFigures]:
    """Measure whole views, one by one."""
    found = []
    for example in examples:
        facts = example.sample.facts
        planes, row = example.sample.planes[None].to(device), facts.row().to(device)
        view, photo = unpack_planes(planes, row)
        images = torch.cat([view.splat, view.frame, view.plain(), network(view).clamp(0, 1)])
        truth = photo.expand_as(images)
        distance = () if judge is None else tuple(judge(images, truth).tolist())
        found.append(
            FusionFigures(
                scene=example.scene,
                name=example.name,
                num_inputs=facts.num_inputs,
                num_members=facts.num_members,
                psnr=tuple(psnr(images, truth).tolist()),
                distance=distance,
            )
        )
    return found


def mean_gain(figures: Sequence[FusionFigures]) -> float:
    """Return how many dB the network has over the plain rule, on the mean of the views."""
    return sum(f.psnr[3] - f.psnr[2] for f in figures) / len(figures)


def gain_table(figures: Sequence[FusionFigures]) -> str:
    """Return Markdown: means by scene and by number of members and inputs."""
    by_group: dict[str, list[FusionFigures]] = {}
    for one in figures:
        members = "one member" if one.num_members == 1 else f"{one.num_members} members"
        groups = (one.scene, f"{members}, {one.num_inputs} inputs", "all")
        for group in groups:
            by_group.setdefault(group, []).append(one)
    scenes = sorted({one.scene for one in figures})
    settings = sorted(by_group.keys() - {*scenes, "all"})
    lines = [f"| views of | number | {' | '.join(RULES)} |", "|---" * (2 + len(RULES)) + "|"]
    for group in (*scenes, *settings, "all"):
        rows = by_group[group]
        cells = [_cell(rows, rule) for rule in range(len(RULES))]
        lines.append(f"| {group} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(rows: Sequence[FusionFigures], rule: int) -> str:
    text = f"{sum(row.psnr[rule] for row in rows) / len(rows):.2f}"
    if not rows[0].distance:
        return text
    return f"{text} / {sum(row.distance[rule] for row in rows) / len(rows):.3f}"
