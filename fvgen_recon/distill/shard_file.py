"""Shards on disk: a plain tar of clips, WebDataset's naming, with a JSON record beside it.

The record is written last, so a shard without one is not there. It holds the tar's SHA-256 and
where each file of each clip lies, for reading a single clip without unpacking.
"""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from fvgen_recon.distill.shard_clip import Member
from fvgen_recon.distill.shard_plan import ShardPlan
from fvgen_recon.errors import InputError
from fvgen_recon.io.file import atomic_path, file_sha256, read_json, write_json

_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a file lies in a tar."""

    name: str
    """What follows the key and a dot."""
    offset: int
    """First byte of its content in the tar."""
    size: int
    """Number of bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipPlace:
    """Where a clip lies in a tar."""

    key: str
    """Its name."""
    members: tuple[Place, ...]
    """Its files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedClip:
    """A clip of the plan that could not be made."""

    key: str
    """Its name."""
    reason: str
    """Why, in one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """What a finished shard holds."""

    number: int
    """Its place in the plan."""
    plan: str
    """Fingerprint of the plan."""
    size: int
    """Bytes of the tar."""
    sha256: str
    """Digest of the tar."""
    clips: tuple[ClipPlace, ...]
    """Its clips."""
    skipped: tuple[SkippedClip, ...]
    """Clips of the plan that it does not hold."""
    seconds: float
    """How long it took to make."""


def tar_path(folder: Path, number: int) -> Path:
    """Return where a shard lies."""
    return folder / f"clips-{number:06d}.tar"


def record_path(folder: Path, number: int) -> Path:
    """Return where a shard's record lies."""
    return tar_path(folder, number).with_suffix(".json")


def write_tar(
    path: Path, clips: Iterator[tuple[str, tuple[Member, ...]]]
) -> tuple[tuple[ClipPlace, ...], str, int]:
    """Write clips to a tar, atomically; the same clips always give the same bytes.

    Returns:
        Where each file lies, the tar's SHA-256 and its size in bytes.
    """
    places = []
    for leftover in path.parent.glob(f".{path.stem}.*{path.suffix}"):
        leftover.unlink(missing_ok=True)  # Of a worker that was killed while it wrote this shard.
    with atomic_path(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, members in clips:
                places.append(ClipPlace(key=key, members=tuple(_add(tar, key, m) for m in members)))
        digest, size = file_sha256(temporary), temporary.stat().st_size
    return tuple(places), digest, size


def _add(tar: tarfile.TarFile, key: str, member: Member) -> Place:
    info = tarfile.TarInfo(f"{key}.{member.name}")
    info.size, info.mode, info.mtime = len(member.data), 0o644, 0
    tar.addfile(info, io.BytesIO(member.data))
    padded = -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return Place(name=member.name, offset=tar.offset - padded, size=info.size)


def read_members(file: BinaryIO, clip: ClipPlace) -> tuple[Member, ...]:
    """Read the files of one clip from an open tar.

    Raises:
        InputError: The tar is shorter than its record says.
    """
    members = []
    for place in clip.members:
        file.seek(place.offset)
        data = file.read(place.size)
        if len(data) != place.size:
            raise InputError(f"The clip {clip.key} is cut off: prepare its shard again.")
        members.append(Member(name=place.name, data=data))
    return tuple(members)


def write_record(folder: Path, record: ShardRecord) -> None:
    """Write the record that makes a shard count."""
    write_json(record_path(folder, record.number), {"schema": _SCHEMA, **asdict(record)})


def read_record(folder: Path, number: int) -> ShardRecord:
    """Read a shard's record.

    Raises:
        InputError: It is missing, damaged or of another version.
    """
    path = record_path(folder, number)
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("schema", None) != _SCHEMA:
        raise InputError(f"{path} is not a shard record of schema {_SCHEMA}: prepare it again.")
    clips = tuple(
        ClipPlace(key=c["key"], members=tuple(Place(**m) for m in c["members"]))
        for c in content.pop("clips")
    )
    skipped = tuple(SkippedClip(**s) for s in content.pop("skipped"))
    return ShardRecord(clips=clips, skipped=skipped, **content)


def finished_shards(folder: Path, plan: ShardPlan) -> list[int]:
    """Return the numbers of shards that are there with the size that their record says.

    Raises:
        InputError: A record belongs to another plan.
    """
    done = []
    for number in range(len(plan.shards)):
        if not (record_path(folder, number).is_file() and tar_path(folder, number).is_file()):
            continue
        record = read_record(folder, number)
        if record.plan != plan.fingerprint:
            raise InputError(
                f"{record_path(folder, number)} belongs to another plan: prepare into a new folder."
            )
        if tar_path(folder, number).stat().st_size == record.size:
            done.append(number)
    return done


def find_faults(folder: Path, plan: ShardPlan) -> list[str]:
    """Check a whole data set against its plan; returns a sentence for each fault.

    Every tar is read and hashed; every clip of the plan must be in its shard once, or be recorded
    as skipped there, and nowhere else.
    """
    faults = []
    seen: set[str] = set()
    for number, windows in enumerate(plan.shards):
        faults.extend(_shard_faults(folder, plan, number))
        if faults and faults[-1].startswith(tar_path(folder, number).name):
            continue
        keys = _keys(folder, number)
        planned = [window.key for window in windows]
        if sorted(keys) != sorted(planned):
            faults.append(f"{tar_path(folder, number).name} does not hold the clips of its plan.")
        faults.extend(f"The clip {key} is there twice." for key in keys if key in seen)
        seen.update(keys)
    known = {tar_path(folder, n).name for n in range(len(plan.shards))}
    strangers = sorted(p.name for p in folder.glob("*.tar") if p.name not in known)
    return faults + [f"{name} is not in the plan." for name in strangers]


def _keys(folder: Path, number: int) -> list[str]:
    """Return the keys in a shard's tar, as the tar itself has them, and its skipped ones."""
    with tarfile.open(tar_path(folder, number)) as tar:
        names = [name.split(".", 1)[0] for name in tar.getnames() if name.endswith(".json")]
    return names + [clip.key for clip in read_record(folder, number).skipped]


def _shard_faults(folder: Path, plan: ShardPlan, number: int) -> list[str]:
    tar = tar_path(folder, number)
    if not (tar.is_file() and record_path(folder, number).is_file()):
        return [f"{tar.name} is missing: run the preparation again."]
    try:
        record = read_record(folder, number)
    except InputError as error:
        return [f"{tar.name}: {error}"]
    if record.plan != plan.fingerprint:
        return [f"{tar.name} belongs to another plan: delete it and run the preparation again."]
    if file_sha256(tar) != record.sha256:
        return [f"{tar.name} is damaged: delete it and run the preparation again."]
    return []


def drop_damaged(folder: Path, plan: ShardPlan) -> Sequence[int]:
    """Take away the records of shards whose tar does not match, so that a run makes them again."""
    damaged = [
        number
        for number in range(len(plan.shards))
        if record_path(folder, number).is_file() and _shard_faults(folder, plan, number)
    ]
    for number in damaged:
        record_path(folder, number).unlink()
    return damaged
