"""Input photos: chosen once, and the same for every tool that comes after training."""

from pathlib import Path

import pytest
from scene_folder import read_meta, shifted, write_meta, write_photo, write_scene

from fvgen_nerfstudio.choice import choose_views, trained_views
from fvgen_nerfstudio.dataparser import FvgenDataParserConfig
from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes import ViewSelection, load_capture, select_views

NUM_PHOTOS, NUM_INPUTS = 9, 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scene(tmp_path, NUM_PHOTOS)


def _chosen(folder: Path, **options) -> tuple[str, ...]:
    return FvgenDataParserConfig(data=folder, **options).setup().input_names


def _lose(folder: Path, trained: tuple[str, ...]) -> str:
    """Delete a held-out photo without which others would be chosen, and return its name."""
    capture = load_capture(folder)
    for name, path in zip(capture.names, capture.paths, strict=True):
        content = path.read_bytes()
        path.unlink()
        if name not in trained and _chosen(folder, views=NUM_INPUTS) != trained:
            return name
        path.write_bytes(content)
    raise AssertionError("The choice does not depend on any held-out photo.")


@pytest.mark.parametrize("views", [NUM_INPUTS, None])
def test_a_photo_that_is_deleted_or_added_changes_nothing_for_a_run(folder, views):
    trained = _chosen(folder, views=NUM_INPUTS)
    lost = _lose(folder, trained)
    meta = read_meta(folder)
    frame = {"file_path": "images/new.png", "transform_matrix": shifted(20.0)}
    write_meta(folder, {**meta, "frames": [frame, *meta["frames"]]})
    write_photo(folder / frame["file_path"])
    parser = FvgenDataParserConfig(data=folder, views=views, trained_views=trained).setup()
    assert parser.input_names == trained
    assert parser.is_trained_choice
    held_out = {parser.source.capture.names[view] for view in parser.views_of("test")}
    assert frame["file_path"] in held_out
    assert not held_out & {lost, *trained}


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_photo_of_the_run_that_is_gone_is_named(folder, is_listed):
    trained = _chosen(folder, views=NUM_INPUTS)
    if is_listed:
        (folder / trained[1]).unlink()
    else:
        meta = read_meta(folder)
        kept = [frame for frame in meta["frames"] if frame["file_path"] != trained[1]]
        write_meta(folder, {**meta, "frames": kept})
    with pytest.raises(InputError, match=f"{trained[1]}, which this run was trained on, is not in"):
        _chosen(folder, views=NUM_INPUTS, trained_views=trained)


def test_what_a_user_names_counts_before_what_a_run_has_kept(folder):
    trained = _chosen(folder, views=NUM_INPUTS)
    others = tuple(name for name in load_capture(folder).names if name not in trained)[:2]
    assert _chosen(folder, view_names=others, trained_views=trained) == others
    assert len(_chosen(folder, views=4, trained_views=trained)) == 4


def test_a_new_run_and_an_old_checkpoint_know_no_photos(folder):
    capture, selection = load_capture(folder), ViewSelection(count=NUM_INPUTS)
    assert choose_views(capture, selection, ()) == select_views(capture, selection)
    assert trained_views({"fvgen": {"strategy_state": {}}}) == trained_views({}) == ()
