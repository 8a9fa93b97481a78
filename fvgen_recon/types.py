"""The nouns of the project: frozen dataclasses that cross module borders.

Conventions, held everywhere inside `fvgen_recon`:

- Cameras look along +z with x to the right and y down (OpenCV); `c2w` maps camera to world.
- Intrinsics `K` are in pixels; the centre of pixel (row i, column j) is the point (j+0.5, i+0.5).
- Images are RGB floats in [0, 1], channels first.
- Letters: `B` batch, `T` frames, `V` views, `N` points, `L` layers, `H W` pixels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fvgen_recon.errors import InputError

HINT_CELL_PX = 4
"""Side in pixels of the cells that `Guidance.hints` are means over."""
_RIGID_TOLERANCE = 1e-3


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise InputError(sentence)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cameras:
    """Pinhole cameras of one image size.

    Raises:
        InputError: A pose is not rigid, a value is not finite or the image is empty.
    """

    c2w: Float[Tensor, "*B 4 4"]
    """Camera-to-world rigid motions, OpenCV axes."""
    K: Float[Tensor, "*B 3 3"]
    """Intrinsics in pixels."""
    height: int
    """Image height in pixels."""
    width: int
    """Image width in pixels."""

    def __post_init__(self) -> None:
        """Check what a shape cannot say."""
        _require(self.height > 0 and self.width > 0, "A camera needs an image of at least 1x1.")
        finite = bool(torch.isfinite(self.c2w).all() and torch.isfinite(self.K).all())
        _require(finite, "Camera poses and intrinsics must be finite numbers: a NaN or inf came.")
        _require(bool((self.K[..., [0, 1], [0, 1]] > 0).all()), "Focal lengths must be positive.")
        rotation = self.c2w[..., :3, :3]
        eye = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
        error = (rotation @ rotation.mT - eye).abs().amax() if rotation.numel() else eye.sum() * 0
        proper = bool((torch.linalg.det(rotation) > 0).all())
        _require(
            float(error) < _RIGID_TOLERANCE,
            f"Camera poses must be rigid (rotation and translation): the rotation part is off by "
            f"{float(error):.2g}. Remove scale from the poses, and give them more digits.",
        )
        _require(
            proper,
            "Camera poses must be rigid (rotation and translation): the rotation part mirrors. "
            "Turn the world around instead of flipping one of its axes.",
        )

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of cameras; empty for a single camera."""
        return self.c2w.shape[:-2]

    @property
    def w2c(self) -> Float[Tensor, "*B 4 4"]:
        """World-to-camera rigid motions."""
        inverse = torch.zeros_like(self.c2w)
        rotation = self.c2w[..., :3, :3].mT
        inverse[..., :3, :3] = rotation
        inverse[..., :3, 3:] = -rotation @ self.c2w[..., :3, 3:]
        inverse[..., 3, 3] = 1.0
        return inverse

    @property
    def position(self) -> Float[Tensor, "*B 3"]:
        """Camera centres in world units."""
        return self.c2w[..., :3, 3]

    @property
    def direction(self) -> Float[Tensor, "*B 3"]:
        """Unit viewing directions in the world."""
        return self.c2w[..., :3, 2]

    def __len__(self) -> int:
        """Number of cameras along the first batch axis."""
        return self.c2w.shape[0]

    def __iter__(self) -> Iterator["Cameras"]:
        """Iterate over the first batch axis."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> "Cameras":
        """Select cameras along the first batch axis."""
        return self._derive(c2w=self.c2w[index], K=self.K[index])

    def to(self, device: torch.device | str) -> "Cameras":
        """Move the tensors to a device."""
        return self._derive(c2w=self.c2w.to(device), K=self.K.to(device))

    def resize(self, height: int, width: int) -> "Cameras":
        """Return cameras of the same field of view at another image size."""
        _require(height > 0 and width > 0, "A camera needs an image of at least 1x1.")
        K = self.K.clone()  # scaled in place: a copy from the host would make a GPU wait
        K[..., 0, :] *= width / self.width
        K[..., 1, :] *= height / self.height
        return self._derive(K=K, height=height, width=width)

    def _derive(self, **changes: Tensor | int) -> "Cameras":
        """Copy with changes that leave valid cameras valid.

        They are not checked again: every look at a value makes a GPU and the host wait for each
        other, and cameras are cut and resized in inner loops.
        """
        made = object.__new__(Cameras)
        for name in ("c2w", "K", "height", "width"):
            object.__setattr__(made, name, changes.get(name, getattr(self, name)))
        return made


@dataclass(frozen=True, kw_only=True, slots=True)
class PointCloud:
    """Coloured world points, each with a confidence and the input view it came from."""

    xyz: Float[Tensor, "N 3"]
    """World positions."""
    rgb: Float[Tensor, "N 3"]
    """Colours in [0, 1]."""
    confidence: Float[Tensor, "N"]
    """How far a point may be trusted, in [0, 1]; points below a renderer's threshold only serve
    the dense single-view layers."""
    view: Int[Tensor, "N"]
    """Index of the input view that a point was lifted from; -1 where it has none."""
    alternatives: "tuple[PointCloud, ...]" = ()
    """The same photos at the depths of other estimators: what a generator may copy from where the
    points are wrong, never evidence. Selecting points drops them."""

    def __post_init__(self) -> None:
        """Check what a shape cannot say."""
        _require(bool(torch.isfinite(self.xyz).all()), "Points must be finite: a NaN or inf came.")
        if self.rgb.numel():
            low, high = float(self.rgb.amin()), float(self.rgb.amax())
            _require(
                low >= 0 and high <= 1, f"Colours must lie in [0, 1]: {low:g} to {high:g} came."
            )

    def __len__(self) -> int:
        """Number of points."""
        return self.xyz.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "PointCloud":
        """Select points by a slice, an index tensor or a mask."""
        return PointCloud(
            xyz=self.xyz[index],
            rgb=self.rgb[index],
            confidence=self.confidence[index],
            view=self.view[index],
        )

    def to(self, device: torch.device | str) -> "PointCloud":
        """Move the tensors to a device."""
        return PointCloud(
            xyz=self.xyz.to(device),
            rgb=self.rgb.to(device),
            confidence=self.confidence.to(device),
            view=self.view.to(device),
            alternatives=tuple(cloud.to(device) for cloud in self.alternatives),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """The chosen input photos of a scene with their cameras. Held-out views are not in it."""

    images: Float[Tensor, "V 3 H W"]
    """Photos in [0, 1], all of one size."""
    cameras: Cameras
    """One camera for each photo."""
    names: tuple[str, ...]
    """File names of the photos, in order."""
    points: PointCloud | None = None
    """Points that came with the scene, or none."""

    def __post_init__(self) -> None:
        """Check that images, cameras and names agree."""
        num_views = self.images.shape[0]
        _require(num_views >= 1, "A scene needs at least one image: none came.")
        _require(
            self.cameras.batch_shape == (num_views,) and len(self.names) == num_views,
            f"A scene needs one camera and one name an image: {num_views} images, "
            f"{tuple(self.cameras.batch_shape)} cameras and {len(self.names)} names came.",
        )
        size = (self.cameras.height, self.cameras.width)
        _require(
            tuple(self.images.shape[-2:]) == size,
            f"Images of {size[0]}x{size[1]} (height x width) were expected from the intrinsics: "
            f"{self.images.shape[-2]}x{self.images.shape[-1]} came.",
        )

    def __len__(self) -> int:
        """Number of views."""
        return self.images.shape[0]

    def to(self, device: torch.device | str) -> "Scene":
        """Move the tensors to a device."""
        points = None if self.points is None else self.points.to(device)
        return replace(
            self, images=self.images.to(device), cameras=self.cameras.to(device), points=points
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """A frame of a trajectory that coincides with an input view."""

    frame: int
    """Index of the frame in the trajectory."""
    view: int
    """Index of the input view in the scene."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """The camera path of one clip."""

    cameras: Cameras
    """One camera for each of the T frames."""
    anchors: tuple[Anchor, ...]
    """Frames that coincide with input views; usually the first and the last."""

    def __post_init__(self) -> None:
        """Check that anchors lie on the path."""
        _require(len(self.cameras.batch_shape) == 1, "A trajectory is a single row of cameras.")
        inside = all(0 <= a.frame < len(self.cameras) and a.view >= 0 for a in self.anchors)
        _require(inside, "Anchors must name frames of the trajectory and views of the scene.")

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.cameras)


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """What a generator is conditioned on: renders of what is known, along a trajectory."""

    frames: Float[Tensor, "T 3 H W"]
    """Renders of the trusted points on black; clean photos at the anchor frames."""
    mask: Bool[Tensor, "T 1 H W"]
    """True where `frames` is trusted; all true at anchor frames."""
    depth: Float[Tensor, "T 1 H W"]
    """Z-depth of the render in world units, 0 where nothing was hit."""
    layers: Float[Tensor, "L T 3 H W"]
    """Renders of all pixels of single input views, low confidence included; the first two layers
    are those of the first and the last anchor. L may be 0."""
    layer_masks: Bool[Tensor, "L T 1 H W"]
    """True where a layer was hit by a point."""
    anchors: tuple[Anchor, ...]
    """Frames that hold a clean photo."""
    reference: Float[Tensor, "3 H W"]
    """The clean photo of the first anchor (the image that a teacher's image encoder sees)."""
    alternatives: Float[Tensor, "G T 3 H W"] | None = None
    """Renders of further guesses: all pixels of the other input views together, then those of the
    first and of the last anchor at each of the cloud's alternative depths. None: not rendered."""
    alternative_masks: Bool[Tensor, "G T 1 H W"] | None = None
    """True where such a render was hit by a point."""
    hints: Float[Tensor, "S T 2 h w"] | None = None
    """How sure and how far each render is: means over cells of 4x4 pixels, the last ones cut, of
    what was hit in `frames`, then the first two layers, then the alternatives. Confidence, and the
    logarithm of z over the clip's mean depth in units of 1.5, in [-1, 1]; 0 where nothing was hit.
    None: not rendered."""

    def __post_init__(self) -> None:
        """Check that anchors lie on the clip."""
        inside = all(0 <= a.frame < self.frames.shape[0] for a in self.anchors)
        _require(inside, "Anchors must name frames of the guidance.")

    def __len__(self) -> int:
        """Number of frames."""
        return self.frames.shape[0]

    @property
    def is_anchor(self) -> Bool[Tensor, "T"]:
        """True for the frames that hold a clean photo."""
        flags = torch.zeros(len(self), dtype=torch.bool, device=self.frames.device)
        flags[[a.frame for a in self.anchors]] = True
        return flags

    def to(self, device: torch.device | str) -> "Guidance":
        """Move the tensors to a device."""
        names = ["frames", "mask", "depth", "layers", "layer_masks", "reference"]
        if self.alternatives is not None:
            names += ["alternatives", "alternative_masks"]
        if self.hints is not None:
            names.append("hints")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """Generated frames with the cameras they belong to and how far each pixel may be trusted."""

    frames: Float[Tensor, "T 3 H W"]
    """Frames in [0, 1]."""
    cameras: Cameras
    """One camera for each frame."""
    guidance: Guidance
    """What the frames were generated from."""
    confidence: Float[Tensor, "T 1 H W"]
    """Weight of each pixel in training, in [0, 1]; 0 means unknown."""

    def __post_init__(self) -> None:
        """Check that frames and cameras agree."""
        _require(
            self.cameras.batch_shape == (self.frames.shape[0],),
            f"A clip needs one camera a frame: {self.frames.shape[0]} frames and "
            f"{tuple(self.cameras.batch_shape)} cameras came.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewBatch:
    """Real and generated views, ready to train a splat on."""

    images: Float[Tensor, "N 3 H W"]
    """Images in [0, 1]."""
    cameras: Cameras
    """One camera for each image."""
    weight: Float[Tensor, "N 1 H W"]
    """Weight of each pixel in the loss, in [0, 1]; 1 everywhere for real views."""
    is_real: Bool[Tensor, "N"]
    """True for photos, false for generated frames."""

    def __post_init__(self) -> None:
        """Check that weights are weights."""
        if self.weight.numel():
            low, high = float(self.weight.amin()), float(self.weight.amax())
            inside = low >= 0 and high <= 1 and math.isfinite(high)
            _require(inside, f"View weights must lie in [0, 1]: {low:g} to {high:g} came.")
            real = self.weight[self.is_real]
            _require(bool((real == 1).all()), "The weight of a real view is 1 everywhere.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How far a result of ours is from a reference's, and how far it may be."""

    name: str
    """What was compared."""
    value: float
    """Greatest difference; NaN counts as too far."""
    tolerance: float
    """Greatest difference that is accepted."""

    @property
    def is_accepted(self) -> bool:
        """True where the difference is within the tolerance."""
        return self.value <= self.tolerance
