"""The bank: every generated frame on disk with its provenance.

A bank is a folder with a `manifest.json` and, for each frame, a PNG of the colours and a PNG of
the confidence. Files are written before the manifest names them and the manifest is replaced
atomically, so an interrupted run leaves a valid bank. Reading needs no GPU and no model.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.io.file import read_json, write_json
from fvgen_recon.io.image import read_image, write_image
from fvgen_recon.types import Cameras, Clip, Guidance, ViewBatch

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a generated clip comes from: enough to make it again."""

    generator: str
    """Name of the generator."""
    weights_hash: str
    """SHA-256 of its weights; empty where there are none."""
    num_steps: int
    """Network evaluations a clip."""
    seed: int
    """Seed of the sample."""
    round: int
    """Round of densification, from 0."""
    trajectory: int
    """Index of the clip within its round."""
    guidance_hash: str
    """Hash of the conditioning."""
    scoring_hash: str = ""
    """Hash of how its pixels were weighed, the number of samples included; empty in old banks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BankEntry:
    """One generated frame of a bank."""

    image: str
    """File name of the colours."""
    confidence: str
    """File name of the confidence."""
    frame: int
    """Index of the frame in its clip."""
    c2w: tuple[tuple[float, ...], ...]
    """Camera-to-world pose, OpenCV."""
    K: tuple[tuple[float, ...], ...]
    """Intrinsics in pixels."""
    height: int
    """Image height in pixels."""
    width: int
    """Image width in pixels."""
    origin: Origin
    """Provenance."""
    is_active: bool = True
    """False where a gate or a person has taken the frame out of training."""

    @property
    def camera(self) -> Cameras:
        """The frame's camera."""
        return Cameras(
            c2w=torch.tensor(self.c2w), K=torch.tensor(self.K), height=self.height, width=self.width
        )


def hash_guidance(guidance: Guidance) -> str:
    """Return a short hash of a conditioning, stable to 8-bit colour."""
    digest = hashlib.sha256()
    images = [guidance.frames, guidance.layers, guidance.reference]
    masks = [guidance.mask, guidance.layer_masks]
    if guidance.alternatives is not None and guidance.alternative_masks is not None:
        images.append(guidance.alternatives)
        masks.append(guidance.alternative_masks)
    for image in images:
        digest.update((image * 255).round().to(torch.uint8).cpu().numpy().tobytes())
    for mask in masks:
        digest.update(mask.cpu().numpy().tobytes())
    if guidance.hints is not None:
        digest.update((guidance.hints * 127).round().to(torch.int8).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


class Bank:
    """Generated frames in a folder.

    Raises:
        InputError: The folder's manifest is of another schema version or names missing files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._entries: list[BankEntry] = []
        self._num_rounds = 0
        self._inputs: Float[Tensor, "V 4 4"] | None = None
        if (self.folder / MANIFEST).exists():
            self._entries, self._num_rounds, self._inputs = _read_manifest(self.folder)

    def __len__(self) -> int:
        """Number of frames, taken-out ones included."""
        return len(self._entries)

    @property
    def entries(self) -> tuple[BankEntry, ...]:
        """All frames that take part in training."""
        return tuple(entry for entry in self._entries if entry.is_active)

    @property
    def num_rounds(self) -> int:
        """Number of rounds that are whole; one that was interrupted does not count."""
        return self._num_rounds

    def require_inputs(self, cameras: Cameras) -> None:
        """Check that the frames were made from the photos of these cameras, in their world.

        A bank of other photos may show what is held out now. Banks that do not say what they were
        made from are taken as they are.

        Raises:
            InputError: They were made from other photos or in another world.
        """
        if not self._has_inputs(cameras):
            raise InputError(
                f"The frames of the bank in {self.folder} were made from other input photos than "
                "these, or in another world: choose the views that it was made from, or another "
                "bank and run folder."
            )

    def start_round(self, cameras: Cameras) -> None:
        """Note the input cameras that frames are made from; frames of other inputs leave."""
        if not self._has_inputs(cameras):
            self._entries, self._num_rounds = [], 0
        elif self._inputs is not None:
            return
        self._inputs = cameras.c2w.cpu()
        self._write_manifest()

    def restart(self, cameras: Cameras) -> None:
        """Begin anew: no round is whole; frames of the same inputs stay, to be found again."""
        self.start_round(cameras)
        self._num_rounds = 0
        self._write_manifest()

    def _has_inputs(self, cameras: Cameras) -> bool:
        known, poses = self._inputs, cameras.c2w.cpu()
        if known is None:
            return True
        return known.shape == poses.shape and torch.allclose(known, poses, rtol=1e-4, atol=1e-4)

    def find(self, origin: Origin) -> tuple[BankEntry, ...]:
        """Return the frames of a clip, empty where it has not been generated."""
        return tuple(entry for entry in self._entries if entry.origin == origin)

    def add_clip(self, clip: Clip, origin: Origin) -> tuple[BankEntry, ...]:
        """Write a clip's generated frames; anchor frames are photos and are left out.

        It takes the place of a clip of the same round, trajectory and seed, whose file names it
        shares.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        is_anchor = clip.guidance.is_anchor.tolist()
        kept = [i for i in range(len(clip.frames)) if not is_anchor[i]]
        added = [self._write_frame(clip, origin, i) for i in kept]
        self._entries = [e for e in self._entries if _slot(e.origin) != _slot(origin)] + added
        self._write_manifest()
        return tuple(added)

    def finish_round(self, index: int, origins: tuple[Origin, ...]) -> None:
        """Mark a round as whole; frames of other attempts at it leave the manifest.

        Args:
            index: Number of the round, from 0.
            origins: Where its clips come from, one for each.
        """
        self._entries = [e for e in self._entries if e.origin.round != index or e.origin in origins]
        self._num_rounds = max(self._num_rounds, index + 1)
        self._write_manifest()

    def read_clip(self, origin: Origin, guidance: Guidance, cameras: Cameras) -> Clip | None:
        """Return a clip that was generated before, or none; anchor frames are the photos."""
        found = self.find(origin)
        if not found:
            return None
        frames = guidance.frames.clone()
        confidence = torch.ones_like(guidance.depth)
        for entry in found:
            image, weight = self.read(entry)
            frames[entry.frame], confidence[entry.frame] = image.to(frames), weight.to(frames)
        return Clip(frames=frames, cameras=cameras, guidance=guidance, confidence=confidence)

    def take_out(self, entries: tuple[BankEntry, ...]) -> None:
        """Take frames out of training; their files stay."""
        names = {entry.image for entry in entries}
        self._entries = [
            replace(e, is_active=e.is_active and e.image not in names) for e in self._entries
        ]
        self._write_manifest()

    def read(self, entry: BankEntry) -> tuple[Float[Tensor, "3 H W"], Float[Tensor, "1 H W"]]:
        """Return a frame's colours and its confidence."""
        return (
            read_image(self.folder / entry.image),
            read_image(self.folder / entry.confidence)[:1].contiguous(),
        )

    def view_batch(self, entries: tuple[BankEntry, ...]) -> ViewBatch:
        """Read frames of one size as training views."""
        if not entries:
            raise InputError("The bank holds no frames to read: generate some first.")
        images, weights = zip(*(self.read(entry) for entry in entries), strict=True)
        first = entries[0]
        cameras = Cameras(
            c2w=torch.tensor([entry.c2w for entry in entries]),
            K=torch.tensor([entry.K for entry in entries]),
            height=first.height,
            width=first.width,
        )
        return ViewBatch(
            images=torch.stack(images),
            cameras=cameras,
            weight=torch.stack(weights),
            is_real=torch.zeros(len(entries), dtype=torch.bool),
        )

    def _write_frame(self, clip: Clip, origin: Origin, index: int) -> BankEntry:
        stem = f"r{origin.round:02d}_c{origin.trajectory:03d}_s{origin.seed}_f{index:03d}"
        camera = clip.cameras[index]
        image, confidence = f"{stem}.png", f"{stem}_confidence.png"
        write_image(self.folder / image, clip.frames[index].float().clamp(0, 1).cpu())
        grey = clip.confidence[index].float().clamp(0, 1).cpu().expand(3, -1, -1)
        write_image(self.folder / confidence, grey.contiguous())
        return BankEntry(
            image=image,
            confidence=confidence,
            frame=index,
            c2w=tuple(map(tuple, camera.c2w.cpu().tolist())),
            K=tuple(map(tuple, camera.K.cpu().tolist())),
            height=camera.height,
            width=camera.width,
            origin=origin,
        )

    def _write_manifest(self) -> None:
        content = {
            "schema_version": SCHEMA_VERSION,
            "num_rounds": self._num_rounds,
            "inputs": None if self._inputs is None else self._inputs.tolist(),
            "frames": [asdict(entry) for entry in self._entries],
        }
        write_json(self.folder / MANIFEST, content)


def _slot(origin: Origin) -> tuple[int, int, int]:
    """Return what names a clip's files."""
    return origin.round, origin.trajectory, origin.seed


def _read_manifest(folder: Path) -> tuple[list[BankEntry], int, Tensor | None]:
    """Read and check a manifest: frames, number of whole rounds, poses of the inputs `V 4 4`."""
    manifest = read_json(folder / MANIFEST)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"The bank in {folder} has schema version {version}; this version of fvgen-recon reads "
            f"{SCHEMA_VERSION}. Generate the bank again."
        )
    try:
        entries = [_entry_from_json(row) for row in manifest["frames"]]
        num_rounds = int(manifest["num_rounds"])
        poses = manifest.get("inputs")  # Banks of before do not know them.
        inputs = None if poses is None else torch.tensor(poses).view(-1, 4, 4)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The manifest of the bank in {folder} is damaged ({error}): generate the bank again."
        ) from error
    names = [name for entry in entries for name in (entry.image, entry.confidence)]
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"The bank in {folder} names {len(missing)} files that are not there, the first is "
            f"{missing[0]}. Generate the bank again or restore them."
        )
    return entries, num_rounds, inputs


def _entry_from_json(row: dict) -> BankEntry:
    """Turn one manifest row back into an entry."""
    matrices = {key: tuple(map(tuple, row[key])) for key in ("c2w", "K")}
    return BankEntry(**{**row, **matrices, "origin": Origin(**row["origin"])})
