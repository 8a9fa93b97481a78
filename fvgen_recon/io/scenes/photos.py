"""A folder of plain photos: poses by structure from motion (COLMAP through pycolmap)."""

import hashlib
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from fvgen_recon.errors import InputError
from fvgen_recon.io.file import require_folder
from fvgen_recon.io.image import image_size, is_turned, read_image
from fvgen_recon.io.scenes.capture import Capture
from fvgen_recon.io.scenes.colmap import capture_from_model
from fvgen_recon.io.scenes.colmap_model import has_model, read_model

_LOG = logging.getLogger(__name__)
_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
_COLMAP_FORMATS = {"JPEG", "MPO", "PNG", "TIFF", "BMP"}
_SEED = 0
_SFM_LONG_SIDE = 1600


def detect(folder: Path) -> bool:
    """Return whether the folder, or its `images` folder, holds photos."""
    return bool(_photos(_photo_folder(folder)))


def _photo_folder(folder: Path) -> Path:
    return folder / "images" if (folder / "images").is_dir() else folder


def _photos(folder: Path) -> list[Path]:
    """Return the photos of a folder, without what systems hide beside them (`._0001.jpg`)."""
    if not folder.is_dir():
        return []
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(p for p in visible if p.suffix.lower() in _ENDINGS and p.is_file())


def load(folder: Path, cache: Path) -> Capture:
    """Estimate poses of all photos in a folder and return them as a capture.

    Every photo is opened for its pose: a scene without poses has no held-out views until they are
    known. Photos that cannot be connected to the others are left out, with a warning.

    Args:
        folder: Folder of photos, or one with an `images` folder of them.
        cache: Folder for the model, so that a second call is quick; nothing is written elsewhere.

    Raises:
        InputError: A photo is damaged, there are fewer than two, or they cannot be connected.
    """
    images = _photo_folder(folder)
    photos = _photos(images)
    if len(photos) < 2:
        raise InputError(
            f"{len(photos)} photo(s) were found in {images}: poses need at least two, better ten."
        )
    model = cache / _key(photos)
    if not has_model(model):
        _reconstruct(photos, model)
    return capture_from_model(
        read_model(model), folder=folder, images=images, format_name="photos", is_upright=True
    )


def _key(photos: list[Path]) -> str:
    """Return a name that changes with the photos and with the version that made the poses."""
    import pycolmap

    digest = hashlib.sha256(f"{pycolmap.__version__} {_SEED}".encode())
    for photo in photos:
        state = photo.stat()
        digest.update(f"{photo.resolve()}:{state.st_size}:{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _reconstruct(photos: list[Path], model: Path) -> None:
    """Estimate poses and keep the largest model; `model` appears whole or not at all."""
    for photo in photos:
        read_image(photo)
    _require_cache(model.parent)
    model.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=model.parent, prefix=".sfm-") as work, _quiet():
        images = _readable_folder(photos, Path(work) / "readable")
        best = _map_photos(images, [photo.name for photo in photos], Path(work))
        if best is None or best.num_reg_images() < 2:
            raise InputError(
                f"The {len(photos)} photos in {photos[0].parent} could not be connected: take more "
                "photos with more overlap, or bring poses (transforms.json or COLMAP)."
            )
        _report(best, photos)
        finished = Path(work) / "finished"
        finished.mkdir()
        best.write(str(finished))
        if not model.is_dir():
            finished.rename(model)


def _require_cache(cache: Path) -> None:
    try:
        require_folder(cache)
    except InputError as error:
        raise InputError(
            f"{error} Poses of photos are kept there; XDG_CACHE_HOME says where."
        ) from error


def _readable_folder(photos: list[Path], copies: Path) -> Path:
    """Return a folder of upright photos: the user's own, or copies where COLMAP needs them.

    COLMAP reads stored pixels; what follows wants the world's up in the image's up. It passes over
    formats that it does not know, and goes by the content of a file, not by its name.
    """
    if all(_format(photo) in _COLMAP_FORMATS and not is_turned(photo) for photo in photos):
        return photos[0].parent
    copies.mkdir()
    for photo in photos:
        with Image.open(photo) as image:
            upright = ImageOps.exif_transpose(image)
            exif = upright.getexif()
            if image.format in _COLMAP_FORMATS:
                upright.save(copies / photo.name, quality=95, exif=exif)
            else:
                upright.convert("RGB").save(copies / photo.name, format="PNG", exif=exif)
    return copies


def _format(photo: Path) -> str | None:
    with Image.open(photo) as image:
        return image.format


def _map_photos(images: Path, names: list[str], work: Path) -> Any:
    """Run features, matching and incremental mapping; return the largest model, or none.

    Threads and seeds are fixed so that the same photos give the same poses.
    """
    import pycolmap

    count, database = len(names), work / "database.db"
    sizes = {image_size(images / name) for name in names}
    mode = pycolmap.CameraMode.SINGLE if len(sizes) == 1 else pycolmap.CameraMode.AUTO
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads, extraction.max_image_size = 1, _SFM_LONG_SIDE
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = _SEED
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.random_seed, mapping.num_threads = _SEED, 1
    pycolmap.set_random_seed(_SEED)
    device = pycolmap.Device.cpu
    with _stage(f"finding features in {count} photos (about a second each)"):
        pycolmap.extract_features(
            database, images, names, mode, extraction_options=extraction, device=device
        )
    with _stage(f"matching {count * (count - 1) // 2} pairs of photos"):
        pycolmap.match_exhaustive(database, verification_options=verification, device=device)
    with _stage(f"placing {count} photos"):
        models = pycolmap.incremental_mapping(
            database, images, work, mapping, next_image_callback=_counter(count)
        )
    return max(models.values(), key=lambda model: model.num_reg_images(), default=None)


def _counter(count: int) -> Any:
    """Return a callback that says how many photos were placed, now and then."""
    placed = [2]

    def next_image() -> None:
        placed[0] += 1
        if placed[0] % 10 == 0:
            _LOG.info("poses: %d of %d photos placed", placed[0], count)

    return next_image


@contextmanager
def _stage(what: str) -> Iterator[None]:
    _LOG.info("poses: %s", what)
    start = time.monotonic()
    yield
    _LOG.info("poses: done in %.1f s", time.monotonic() - start)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep COLMAP's own log off the screen."""
    import pycolmap

    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


def _report(model: Any, photos: list[Path]) -> None:
    """Say how many photos have poses, and which have none."""
    placed = {image.name for image in model.images.values() if image.has_pose}
    lost = [photo.name for photo in photos if photo.name not in placed]
    _LOG.info("poses: %d of %d photos have one", len(placed), len(photos))
    if lost:
        _LOG.warning("poses: left out, as they could not be connected: %s", ", ".join(lost))
