"""Posed scenes in one small file: JPEG photos, cameras and typical depths.

The file is safetensors: one byte tensor of concatenated JPEGs a scene with its offsets, cameras
and depths, and JSON metadata. It is what training and evaluation carry to another machine.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.io.file import atomic_path
from fvgen_recon.io.scenes import Capture, load_capture, load_scene
from fvgen_recon.pointcloud.depth_map import reduce_scene
from fvgen_recon.pointcloud.depth_range import find_depth_span
from fvgen_recon.types import Cameras, PointCloud, Scene

_log = logging.getLogger(__name__)

_SCHEMA = 1
_SWEEP_SIDE = 112
"""Longer side of the photos that are matched for their depth."""
_TRACKS = ("track_xyz", "track_point", "track_frame")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedTracks:
    """Sparse points of a scene and the photos that each was seen in."""

    xyz: Float[Tensor, "N 3"]
    """World positions."""
    point: Int[Tensor, "O"]
    """Point of each observation."""
    frame: Int[Tensor, "O"]
    """Photo of each observation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedScene:
    """All photos of a scene, still compressed."""

    name: str
    """Name of the scene."""
    photo_names: tuple[str, ...]
    """File names of the photos."""
    jpegs: tuple[bytes, ...]
    """The photos, without distortion, all of one size."""
    cameras: Cameras
    """One camera a photo."""
    depth: Float[Tensor, "V"]
    """Median depth of the sparse points in each photo, world units: says how wide a baseline is."""
    tracks: PackedTracks | None = None
    """Sparse points, where they were packed."""

    def __len__(self) -> int:
        """Number of photos."""
        return len(self.jpegs)

    def scene(self, indices: Sequence[int], height: int, width: int) -> Scene:
        """Decode some photos at a given size; no other photo is opened."""
        images = [_decode(self.jpegs[i], height, width) for i in indices]
        return Scene(
            images=torch.stack(images),
            cameras=self.cameras[list(indices)].resize(height, width),
            names=tuple(self.photo_names[i] for i in indices),
        )


def _decode(data: bytes, height: int, width: int) -> Tensor:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError("A photo in the pack is damaged: pack the scenes again.")
    smaller = height < image.shape[0]
    image = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    )
    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float() / 255


def encode_photo(image: Float[Tensor, "3 H W"], quality: int) -> bytes:
    """Compress an image in [0, 1] as JPEG."""
    pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()[..., ::-1]
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def typical_depth(cloud: PointCloud | None, cameras: Cameras) -> Float[Tensor, "V"]:
    """Median depth of the points that each camera sees; 0 where it sees none."""
    depths = []
    for camera in cameras:
        depth = camera.c2w.new_zeros(0)
        if cloud is not None and len(cloud):
            uv, z = project_points(cloud.xyz, camera)
            x, y = uv.unbind(-1)
            seen = (z > 0) & (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)
            depth = z[seen]
        depths.append(depth.median() if len(depth) else camera.c2w.new_zeros(()))
    return torch.stack(depths)


def matched_depth(scene: Scene) -> Float[Tensor, "V"]:
    """Middle of the depths at which each photo matches others, for scenes without points.

    Raises:
        InputError: Nothing matches.
    """
    span = find_depth_span(*reduce_scene(scene, _SWEEP_SIDE))
    return 1 / span.mean(dim=1)


def _long_tracks(capture: Capture) -> PackedTracks | None:
    """Keep points with three observations or more; those of two where there are no longer ones."""
    if capture.points is None or capture.tracks is None:
        return None
    seen = torch.stack([capture.tracks.point, capture.tracks.frame], dim=1).unique(dim=0)
    count = torch.bincount(seen[:, 0], minlength=len(capture.points))
    kept = count >= (3 if int(count.max()) >= 3 else 2)
    number = kept.cumsum(0) - 1
    seen = seen[kept[seen[:, 0]]]
    return PackedTracks(
        xyz=capture.points.xyz[kept].contiguous(), point=number[seen[:, 0]], frame=seen[:, 1]
    )


def pack_folder(
    folder: Path, *, long_side: int = 352, quality: int = 88, with_tracks: bool = False
) -> PackedScene:
    """Compress all photos of a scene in any format that `load_capture` reads.

    Args:
        folder: The scene.
        long_side: Photos are shrunk to this many pixels along their longer side.
        quality: JPEG quality.
        with_tracks: Keep sparse points too, which measure and teach depth.

    Raises:
        InputError: The scene cannot be read.
    """
    capture = load_capture(folder)
    indices = tuple(range(len(capture.names)))
    first = capture.cameras[0]
    scale = min(1.0, long_side / max(first.height, first.width))
    size = (round(first.height * scale), round(first.width * scale))
    scene = load_scene(capture, indices, height=size[0], width=size[1])
    has_points = capture.points is not None and len(capture.points) > 0
    depth = typical_depth(capture.points, scene.cameras) if has_points else matched_depth(scene)
    return PackedScene(
        name=folder.name,
        photo_names=scene.names,
        jpegs=tuple(encode_photo(image, quality) for image in scene.images),
        cameras=scene.cameras,
        depth=depth,
        tracks=_long_tracks(capture) if with_tracks else None,
    )


def write_pack(scenes: Sequence[PackedScene], path: Path) -> int:
    """Write scenes into one file and return its size in bytes.

    Raises:
        InputError: There is no scene.
    """
    if not scenes:
        raise InputError("At least one scene was expected to pack: none came.")
    tensors: dict[str, Tensor] = {}
    entries = []
    for index, scene in enumerate(scenes):
        data = bytearray(b"".join(scene.jpegs))
        tensors[f"{index}.jpeg"] = torch.frombuffer(data, dtype=torch.uint8)
        tensors[f"{index}.c2w"] = scene.cameras.c2w.contiguous()
        tensors[f"{index}.K"] = scene.cameras.K.contiguous()
        tensors[f"{index}.depth"] = scene.depth
        if scene.tracks is not None:
            values = (
                scene.tracks.xyz.contiguous(),
                scene.tracks.point.to(torch.int32),
                scene.tracks.frame.to(torch.int16),
            )
            tensors |= {f"{index}.{k}": v for k, v in zip(_TRACKS, values, strict=True)}
        entries.append(
            {
                "name": scene.name,
                "photos": list(scene.photo_names),
                "lengths": [len(j) for j in scene.jpegs],
                "size": [scene.cameras.height, scene.cameras.width],
            }
        )
    with atomic_path(path) as target:
        save_file(tensors, target, {"schema": str(_SCHEMA), "scenes": json.dumps(entries)})
    return path.stat().st_size


def read_pack(path: Path) -> tuple[PackedScene, ...]:
    """Read the scenes of `write_pack`; photos stay compressed.

    Raises:
        InputError: The file is missing, or of another schema.
    """
    if not path.is_file():
        raise InputError(f"No packed scenes at {path}: make them with scripts/pack_scenes.py.")
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
        if header.get("schema") != str(_SCHEMA):
            raise InputError(
                f"Packed scenes of schema {_SCHEMA} were expected: {path} has "
                f"{header.get('schema')}; pack them again."
            )
        entries = json.loads(header["scenes"])
        return tuple(_read_scene(file, i, entry) for i, entry in enumerate(entries))


def warn_of_shared(train: Sequence[PackedScene], validation: Sequence[PackedScene]) -> None:
    """Warn of scenes that are trained on and measured on: numbers on them say nothing."""
    shared = sorted({s.name for s in train} & {s.name for s in validation})
    if shared:
        _log.warning("trained on and measured on alike: %s", ", ".join(shared))


def _read_scene(file: safe_open, index: int, entry: dict) -> PackedScene:
    data = file.get_tensor(f"{index}.jpeg").numpy().tobytes()
    ends = np.cumsum(entry["lengths"])
    starts = ends - np.array(entry["lengths"])
    cameras = Cameras(
        c2w=file.get_tensor(f"{index}.c2w"),
        K=file.get_tensor(f"{index}.K"),
        height=entry["size"][0],
        width=entry["size"][1],
    )
    names = set(file.keys())
    tracks = None
    if f"{index}.track_xyz" in names:
        xyz, point, frame = (file.get_tensor(f"{index}.{key}") for key in _TRACKS)
        tracks = PackedTracks(xyz=xyz, point=point.long(), frame=frame.long())
    return PackedScene(
        name=entry["name"],
        photo_names=tuple(entry["photos"]),
        jpegs=tuple(data[a:b] for a, b in zip(starts, ends, strict=True)),
        cameras=cameras,
        depth=file.get_tensor(f"{index}.depth"),
        tracks=tracks,
    )
