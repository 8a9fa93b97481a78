"""A compact multi-view stereo network: two stages of matching, a completion between them.

Learned features and plain normalised patches of each view are compared with those of its source
views at hypotheses of inverse depth (group-wise correlation), joined by learned weights of the
sources, and regularised in 3-D. Without training the patches alone decide, so that the geometry
is right from the first step.
"""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fvgen_recon.pointcloud.depth_range import plane_depths
from fvgen_recon.pointcloud.mvs.completion import Completion, project_sources
from fvgen_recon.pointcloud.mvs.config import MvsConfig
from fvgen_recon.pointcloud.mvs.evidence import ConfidenceHead, cross_view_signs, stage_signs
from fvgen_recon.pointcloud.mvs.feature import Encoder, patches
from fvgen_recon.pointcloud.mvs.upsampling import GuidedUpsampling
from fvgen_recon.pointcloud.mvs.volume import (
    MatchMaps,
    Regulariser,
    SourceWeights,
    correlate_sources,
    join_sources,
)
from fvgen_recon.pointcloud.sweep import ViewPairs, relate_views
from fvgen_recon.types import Cameras

SIZE_STEP = 16
"""Sides of the photos must be multiples of this."""
_COMPLETION = "completion."
_SEMANTIC = "completion.semantic."


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """What a stage of matching found."""

    logits: Float[Tensor, "R D H W"]
    """Of the hypotheses, from far to near."""
    index: Float[Tensor, "R H W"]
    """Place of the chosen depth among them, in fractions."""
    inverse_depth: Float[Tensor, "R H W"]
    """The chosen inverse depth."""
    first: Float[Tensor, "R H W"]
    """Inverse depth of the first hypothesis."""
    spacing: Float[Tensor, "R"]
    """Distance between two hypotheses."""
    score: Float[Tensor, "R H W"]
    """Correlation of the patches at the depth that matching chose: mean plus best."""
    weight: Float[Tensor, "R H W"]
    """Mean weight of the sources."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MvsResult:
    """Depth of all views, at three sizes."""

    coarse: StageResult
    """First stage, at 1/4."""
    fine: StageResult
    """Second stage, at 1/2."""
    start: Float[Tensor, "V H2 W2"]
    """What it searched around: the first stage at 1/2."""
    inverse_depth: Float[Tensor, "V H W"]
    """At full size."""
    confidence_logit: Float[Tensor, "V H W"]
    """Logit of the chance that the depth is right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pyramid:
    half: Tensor
    quarter: Tensor
    half_maps: MatchMaps
    quarter_maps: MatchMaps


def _join_stages(parts: list[StageResult]) -> StageResult:
    names = [f.name for f in fields(StageResult)]
    return StageResult(**{n: torch.cat([getattr(p, n) for p in parts]) for n in names})


def _read_depth(found: StageResult) -> StageResult:
    """Return the same with the depth that its logits say."""
    index = peak_index(found.logits, 3)
    depth = found.first + index * found.spacing[:, None, None]
    return replace(found, index=index, inverse_depth=depth)


def peak_index(logits: Float[Tensor, "R D H W"], reach: int) -> Float[Tensor, "R H W"]:
    """Mean place of the hypotheses within `reach` of the most probable one (soft-argmax)."""
    labels = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype)
    labels = labels[:, None, None]
    best = logits.argmax(dim=1, keepdim=True)
    near = (labels - best).abs() <= reach
    weight = logits.masked_fill(~near, -torch.inf).softmax(dim=1)
    return (weight * labels).sum(dim=1)


class MvsNetwork(nn.Module):
    """Photos and cameras of a few views to the depth of each."""

    def __init__(self, config: MvsConfig) -> None:
        super().__init__()
        self.config = config
        self.is_mixed = False
        """Compute in bfloat16 where that is safe; projections always are in float32."""
        half, quarter, _ = config.widths
        self.encoder = Encoder(config)
        self.weights = nn.ModuleList([SourceWeights(g) for g in config.groups])
        self.fine = Regulariser(config.groups[0] + 3, half, config.volume[0])
        self.coarse = Regulariser(config.groups[1] + 3, quarter, config.volume[1])
        self.raise_coarse = GuidedUpsampling(quarter)
        self.raise_fine = GuidedUpsampling(half)
        self.confidence = ConfidenceHead(half)
        self.completion = Completion(config) if config.num_completion else None

    def compile_volumes(self) -> None:
        """Compile the networks of the volumes, which take most of the time, for any size."""
        for part in (self.coarse, self.fine):
            part.compile(dynamic=True)

    def forward(
        self,
        images: Float[Tensor, "V 3 H W"],
        cameras: Cameras,
        sources: Int[Tensor, "V S"],
        span: Float[Tensor, "V 2"],
        *,
        chunk: int = 1_000_000,
    ) -> MvsResult:
        """Find the depth of all views.

        Args:
            images: Photos in [0, 1]; sides are multiples of 16. Several scenes may be stacked.
            cameras: Their cameras.
            sources: Views that each view is compared with.
            span: Far and near end of the inverse depths of each view.
            chunk: Reference views matched at a time, which bounds the memory.
        """
        height, width = images.shape[-2:]
        pyramid = self._look(images, sources)
        half_cameras = cameras.resize(height // 2, width // 2)
        quarter_pairs = relate_views(cameras.resize(height // 4, width // 4), sources)
        half_pairs = relate_views(half_cameras, sources)
        parts = torch.arange(len(images), device=images.device).split(chunk)
        coarse = _join_stages(
            [self._match_planes(pyramid, p, _rows(quarter_pairs, p), span[p]) for p in parts]
        )
        if self.completion is not None:
            quarter_cameras = cameras.resize(height // 4, width // 4)
            coarse = self._complete(images, coarse, pyramid.quarter, quarter_cameras, sources)
        fine, starts = [], []
        for refs in parts:
            with self._mixed(images):
                start = self.raise_coarse(coarse.inverse_depth[refs], pyramid.quarter[refs])
            spacing = coarse.spacing[refs]
            pairs = _rows(half_pairs, refs)
            fine.append(self._match_near(pyramid, refs, pairs, start, spacing, span[refs]))
            starts.append(start)
        result = coarse, _join_stages(fine)
        with self._mixed(images):
            inverse_depth = self.raise_fine(result[1].inverse_depth, pyramid.half)
        logit = self._judge(*result, pyramid, half_cameras, sources)
        return MvsResult(
            coarse=result[0],
            fine=result[1],
            start=torch.cat(starts),
            inverse_depth=inverse_depth,
            confidence_logit=logit,
        )

    def complete_planes(
        self,
        images: Float[Tensor, "V 3 H W"],
        cameras: Cameras,
        sources: Int[Tensor, "V S"],
        span: Float[Tensor, "V 2"],
    ) -> StageResult:
        """Find the first stage alone, through which only the completion learns.

        Args:
            images: As for `forward`.
            cameras: Likewise.
            sources: Likewise.
            span: Likewise.
        """
        height, width = images.shape[-2:]
        quarter_cameras = cameras.resize(height // 4, width // 4)
        with torch.no_grad():
            pyramid = self._look(images, sources)
            refs = torch.arange(len(images), device=images.device)
            pairs = relate_views(quarter_cameras, sources)
            found = self._match_planes(pyramid, refs, pairs, span)
        return self._complete(images, found, pyramid.quarter, quarter_cameras, sources)

    def trained_weights(self, *, completion_alone: bool = False) -> dict[str, nn.Parameter]:
        """Return the weights that are learned, by name; those from ImageNet are not."""
        part = _COMPLETION if completion_alone else ""
        return {
            name: weight
            for name, weight in self.named_parameters()
            if name.startswith(part) and not name.startswith(_SEMANTIC)
        }

    def _mixed(self, like: Tensor) -> torch.autocast:
        # Without a cache, which recorded calls could not use; no weight is used twice.
        return torch.autocast(
            like.device.type, torch.bfloat16, enabled=self.is_mixed, cache_enabled=False
        )

    def _look(self, images: Tensor, sources: Tensor) -> _Pyramid:
        with self._mixed(images):
            half, match_half, quarter, match_quarter = self.encoder(images, sources)
        grey = images.float().mean(dim=1)
        with torch.no_grad():
            full_patches = patches(grey)
            half_patches = patches(F.avg_pool2d(grey[:, None], 2)[:, 0])
        return _Pyramid(
            half=half,
            quarter=quarter,
            half_maps=MatchMaps(features=match_half, patches=full_patches),
            quarter_maps=MatchMaps(features=match_quarter, patches=half_patches),
        )

    def _match_planes(
        self, pyramid: _Pyramid, refs: Tensor, pairs: ViewPairs, span: Tensor
    ) -> StageResult:
        planes = plane_depths(span, self.config.num_planes)
        spacing = (span[:, 1] - span[:, 0]) / (self.config.num_planes - 1)
        return self._match(1, pyramid, refs, pairs, (planes, spacing))

    def _complete(
        self,
        images: Tensor,
        found: StageResult,
        context: Tensor,
        cameras: Cameras,
        sources: Tensor,
    ) -> StageResult:
        """Add what the whole views make likely to what matching found."""
        assert self.completion is not None
        clues = _gather_clues(found, cameras, sources)
        with self._mixed(clues):
            added, kept = self.completion(images, context, clues, sources)
        return _read_depth(replace(found, logits=kept * found.logits + added))

    def _match_near(
        self,
        pyramid: _Pyramid,
        refs: Tensor,
        pairs: ViewPairs,
        start: Tensor,
        spacing: Tensor,
        span: Tensor,
    ) -> StageResult:
        count = self.config.num_offsets
        spacing = spacing * self.config.spacing
        offsets = (torch.arange(count, device=start.device) - (count - 1) / 2) * spacing[:, None]
        # Never behind half of the far end: inverse depths stay positive.
        low = 0.5 * span[:, :1, None] - offsets[:, :1, None]
        base = torch.maximum(start.detach(), low)
        hypotheses = base[:, None] + offsets[..., None, None]
        return self._match(0, pyramid, refs, pairs, (hypotheses, spacing))

    def _match(
        self,
        level: int,
        pyramid: _Pyramid,
        refs: Tensor,
        pairs: ViewPairs,
        hypotheses: tuple[Tensor, Tensor],
    ) -> StageResult:
        """Compare at the hypotheses (inverse depths, spacing), regularise and choose."""
        maps = pyramid.quarter_maps if level else pyramid.half_maps
        context = (pyramid.quarter if level else pyramid.half)[refs]
        found = correlate_sources(maps, refs, pairs, hypotheses[0], self.config.groups[level])
        with self._mixed(context):
            weight = self.weights[level](found)
        volume, score = join_sources(found, weight)
        if not volume.is_cuda:  # twice as fast to convolve there
            volume = volume.contiguous(memory_format=torch.channels_last_3d)
        network = self.coarse if level else self.fine
        with self._mixed(context):
            logits = network(volume, score, context)
        index = peak_index(logits, 3)
        spacing = hypotheses[1]
        first = hypotheses[0][:, 0].expand_as(index)
        chosen = index.detach().round().long()[:, None]
        return StageResult(
            logits=logits,
            index=index,
            inverse_depth=first + index * spacing[:, None, None],
            first=first,
            spacing=spacing,
            score=score.gather(1, chosen)[:, 0],
            weight=weight.mean(dim=1),
        )

    def _judge(
        self,
        coarse: StageResult,
        fine: StageResult,
        pyramid: _Pyramid,
        cameras: Cameras,
        sources: Tensor,
    ) -> Tensor:
        """Logits of confidence; they teach the matching nothing."""
        with torch.no_grad():
            first = torch.cat(
                [stage_signs(coarse.logits, coarse.index), coarse.weight[:, None]], dim=1
            )
            first = F.interpolate(first, scale_factor=2, mode="bilinear", align_corners=False)
            signs = [
                first,
                stage_signs(fine.logits, fine.index),
                fine.score[:, None],
                cross_view_signs(fine.inverse_depth.float(), cameras, sources),
            ]
        with self._mixed(pyramid.half):
            return self.confidence(torch.cat(signs, dim=1), pyramid.half.detach())


@torch.no_grad()
def _gather_clues(
    found: StageResult, cameras: Cameras, sources: Tensor
) -> Float[Tensor, "V F H W"]:
    """What matching found in each view, and what its source views' points say there."""
    last = found.logits.shape[1] - 1
    inverse_depth = torch.maximum(found.inverse_depth, 0.25 * found.first.clamp_min(1e-9))
    signs = stage_signs(found.logits, found.index)
    others = cross_view_signs(inverse_depth, cameras, sources)
    projected = project_sources(inverse_depth, signs[:, 0], cameras, sources)
    step = found.spacing[:, None, None]
    place = (projected.inverse_depth - found.first) / step / last
    depth_ratio = torch.log(1 + last * step / found.first.clamp_min(1e-9)) / 4
    maps = [
        2 * found.index / last - 1,
        found.score,
        found.weight,
        depth_ratio.expand_as(found.index),
        (2 * place - 1).clamp(-2, 2) * (projected.trust > 0),
        projected.trust,
        (projected.trust > 0).float(),
    ]
    return torch.cat([torch.stack(maps, dim=1), signs, others], dim=1)


def _rows(pairs: ViewPairs, refs: Tensor) -> ViewPairs:
    return ViewPairs(
        sources=pairs.sources[refs], infinity=pairs.infinity[refs], epipole=pairs.epipole[refs]
    )
