"""Fetch the data of a benchmark suite and lay them out as the suite expects.

Downloads go on where they stopped. Every archive's SHA-256 is checked: against --sha256 where it is
given, else against the one noted at the first download, in `checksums.json` beside the data. The
archives' hosts publish no checksums, so the first download is trusted.

Usage:
    python benchmarks/download.py mipnerf360 --out data/mipnerf360
"""

import hashlib
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import tyro

from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.io.file import atomic_path, read_json, write_json

_CHUNK = 1 << 20
_NOTE = "checksums.json"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A zip file with scenes."""

    url: str
    folders: tuple[str, ...]
    """Folders of a scene that are needed; the rest is not unpacked."""
    root: str = ""
    """Folder inside the archive that holds the scenes; its top by default."""

    @property
    def name(self) -> str:
        """File name."""
        return self.url.rpartition("/")[2]


_MIPNERF360 = ("images_4", "images_8", "sparse")
ARCHIVES = {
    "mipnerf360": (
        Archive(
            url="https://storage.googleapis.com/gresearch/refraw360/360_v2.zip",
            folders=_MIPNERF360,
        ),
        Archive(
            url="https://storage.googleapis.com/gresearch/refraw360/360_extra_scenes.zip",
            folders=_MIPNERF360,
        ),
    ),
    "tanks-and-temples": (
        Archive(
            url="https://repo-sam.inria.fr/fungraph/3d-gaussian-splatting/datasets/input/"
            "tandt_db.zip",
            folders=("images", "sparse"),
            root="tandt",
        ),
    ),
}
"""Archives by suite. LLFF's lies on a drive that asks for a browser: see benchmarks/README.md."""


@dataclass(frozen=True)
class Options:
    """What to fetch."""

    suite: Annotated[str, tyro.conf.Positional]
    """One of mipnerf360, tanks-and-temples."""
    out: Path
    """Folder that gets one folder a scene."""
    url: str | None = None
    """Another place of the suite's archive, such as a mirror or a file:// path; only this one is
    fetched then."""
    sha256: str | None = None
    """Checksum that the archive at --url must have."""
    keep: bool = False
    """Whether to keep the archives after unpacking."""


def plan(options: Options) -> tuple[Archive, ...]:
    """Return the archives to fetch.

    Raises:
        InputError: The suite cannot be fetched.
    """
    if options.suite not in ARCHIVES:
        raise InputError(
            f"The suite `{options.suite}` cannot be fetched: choose one of {', '.join(ARCHIVES)}; "
            "benchmarks/README.md says how to lay out the others by hand."
        )
    archives = ARCHIVES[options.suite]
    if options.url is None:
        return archives
    first = archives[0]
    return (Archive(url=options.url, folders=first.folders, root=first.root),)


def fetch(url: str, path: Path) -> None:
    """Download a file; a partial one from before is completed.

    Raises:
        InputError: The file cannot be had, or it came incomplete.
    """
    partial = path.with_name(path.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    start = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            is_rest = getattr(answer, "status", None) == 206
            expected = int(answer.headers.get("Content-Length") or 0)
            with partial.open("ab" if is_rest else "wb") as file:
                before = file.tell()
                shutil.copyfileobj(answer, file, _CHUNK)
                got = file.tell() - before
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise InputError(
            f"{url} could not be fetched ({error}): run the command again, or download it yourself "
            f"and name it with --url file://PATH."
        ) from error
    if expected and got < expected:
        raise InputError(
            f"{url} stopped after {got} of {expected} bytes: run the command again to go on there."
        )
    partial.replace(path)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check(path: Path, note: Path, wanted: str | None) -> None:
    """Compare a file with its checksum; the first one is noted.

    Raises:
        InputError: It is another file; it is removed.
    """
    known = read_json(note) if note.is_file() else {}
    found = file_hash(path)
    wanted = wanted or known.get(path.name)
    if wanted is not None and wanted.lower() != found:
        path.unlink()
        raise InputError(
            f"{path.name} has the SHA-256 {found} and {wanted} was expected: it was damaged on the "
            "way or has changed, and has been removed. Fetch it again."
        )
    write_json(note, {**known, path.name: found})


def members(archive: Archive, names: list[str]) -> Iterator[tuple[str, PurePosixPath]]:
    """Return the needed files of an archive with their places below the output folder.

    Raises:
        InputError: A name would lead out of the output folder.
    """
    depth = len(PurePosixPath(archive.root).parts)
    for name in names:
        parts = PurePosixPath(name).parts
        if name.endswith("/") or "/".join(parts[:depth]) != archive.root:
            continue
        inside = parts[depth:]
        if ".." in parts or PurePosixPath(name).is_absolute():
            raise InputError(
                f"{archive.name} names the file {name}, which leads out of its folder."
            )
        if len(inside) > 2 and inside[1] in archive.folders:
            yield name, PurePosixPath(*inside)


def unpack(archive: Archive, path: Path, out: Path) -> int:
    """Unpack the needed files that are not there yet and return how many scenes there are.

    Raises:
        InputError: It is no zip file, or it holds no scene.
    """
    scenes: set[str] = set()
    try:
        with zipfile.ZipFile(path) as file:
            for name, place in members(archive, file.namelist()):
                scenes.add(place.parts[0])
                target = out / place
                if target.is_file() and target.stat().st_size == file.getinfo(name).file_size:
                    continue
                with (
                    file.open(name) as source,
                    atomic_path(target) as temporary,
                    temporary.open("wb") as copy,
                ):
                    shutil.copyfileobj(source, copy, _CHUNK)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path.name} is no zip file ({error}): fetch it again.") from error
    if not scenes:
        raise InputError(f"{path.name} holds no scene with {' and '.join(archive.folders)}.")
    return len(scenes)


def run(options: Options) -> None:
    """Fetch, check and unpack every archive of a suite."""
    for archive in plan(options):
        path = options.out / archive.name
        if not path.is_file():
            print(f"Fetching {archive.url}", file=sys.stderr)
            fetch(archive.url, path)
        check(path, options.out / _NOTE, options.sha256)
        count = unpack(archive, path, options.out)
        if not options.keep:
            path.unlink()
        print(f"{count} scenes of {archive.name} in {options.out}")


def main(options: Options) -> int:
    """Fetch, or say in one sentence why not."""
    try:
        run(options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
