"""A folder of plain photos: poses by structure from motion (pycolmap)."""

import hashlib
import logging
import tempfile
from pathlib import Path
from typing import Any

from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes.capture import Capture
from fvgen_recon.io.scenes.colmap import capture_from_reconstruction

_LOG = logging.getLogger(__name__)
_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


def detect(folder: Path) -> bool:
    """Return whether the folder, or its `images` folder, holds photos."""
    return bool(_photos(_photo_folder(folder)))


def _photo_folder(folder: Path) -> Path:
    return folder / "images" if (folder / "images").is_dir() else folder


def _photos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _ENDINGS)


def load(folder: Path) -> Capture:
    """Estimate poses of all photos in a folder and return them as a capture.

    The model is kept in a cache folder under the system's temporary directory, keyed by names and
    sizes of the files, so that a second call is quick. Every photo is opened here: a scene without
    poses has no held-out views until they are known.

    Raises:
        InputError: There are fewer than two photos, or they cannot be connected.
    """
    import pycolmap

    images = _photo_folder(folder)
    photos = _photos(images)
    if len(photos) < 2:
        raise InputError(
            f"{len(photos)} photos were found in {images}: poses need at least two, better ten."
        )
    model = _cache_folder(photos)
    if not (model / "cameras.bin").is_file():
        _reconstruct(pycolmap, images, photos, model)
    return capture_from_reconstruction(
        pycolmap.Reconstruction(str(model)), folder, images, "photos"
    )


def _cache_folder(photos: list[Path]) -> Path:
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(f"{photo.resolve()}:{photo.stat().st_size}:".encode())
    return Path(tempfile.gettempdir()) / "fvgen_recon_sfm" / digest.hexdigest()[:24]


def _reconstruct(pycolmap: Any, images: Path, photos: list[Path], model: Path) -> None:
    """Run features, matching and incremental mapping; keep the largest model."""
    model.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=model.parent) as work:
        database = Path(work) / "database.db"
        names = [photo.name for photo in photos]
        _LOG.info("poses of %d photos: finding features", len(photos))
        pycolmap.set_random_seed(0)
        pycolmap.extract_features(
            database, images, image_names=names, camera_mode=pycolmap.CameraMode.SINGLE
        )
        _LOG.info("poses of %d photos: matching", len(photos))
        pycolmap.match_exhaustive(database)
        _LOG.info("poses of %d photos: mapping", len(photos))
        models = pycolmap.incremental_mapping(database, images, Path(work))
        best = max(models.values(), key=lambda m: m.num_reg_images(), default=None)
        if best is None or best.num_reg_images() < 2:
            raise InputError(
                f"The {len(photos)} photos in {images} could not be connected: take more photos "
                "with more overlap, or bring poses (transforms.json or COLMAP)."
            )
        _LOG.info("poses found for %d of %d photos", best.num_reg_images(), len(photos))
        finished = Path(work) / "finished"
        finished.mkdir()
        best.write(str(finished))
        finished.rename(model)
