import json

import pytest
import torch
from scene_folder import read_meta, write_meta, write_scene

from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes import ViewSelection, load_capture, load_scene, select_views


@pytest.fixture
def row(tmp_path):
    """Ten cameras in a row, one unit apart, looking the same way."""
    return load_capture(write_scene(tmp_path, 10))


def test_farthest_points_cover_a_line(row):
    """The covering radius is at most twice the best one, which is 1 for 5 of 10 in a row."""
    for seed in range(4):
        chosen = select_views(row, ViewSelection(count=5, seed=seed)).inputs
        assert len(chosen) == 5
        assert all(min(abs(i - j) for j in chosen) <= 2 for i in range(10))


def test_the_direction_counts_too(tmp_path):
    meta = read_meta(write_scene(tmp_path, 5))
    for frame in meta["frames"]:
        frame["transform_matrix"][0][3] *= 1e-3
    turned = [[-1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]
    meta["frames"][2]["transform_matrix"] = turned
    write_meta(tmp_path, meta)
    capture = load_capture(tmp_path)
    for seed in range(5):
        assert 2 in select_views(capture, ViewSelection(count=3, seed=seed)).inputs


def test_the_scale_of_the_world_does_not_matter(tmp_path, row):
    meta = read_meta(write_scene(tmp_path, 10))
    for frame in meta["frames"]:
        frame["transform_matrix"][0][3] *= 1000
    write_meta(tmp_path, meta)
    large = load_capture(tmp_path)
    for seed in range(3):
        choice = ViewSelection(count=4, seed=seed)
        assert select_views(large, choice) == select_views(row, choice)


def test_a_greedy_twin_agrees(row):
    """Farthest point by the definition: each next view is the one farthest from all chosen."""
    position = torch.stack([camera.position for camera in row.cameras]).double()
    chosen = [int(torch.randint(10, (), generator=torch.Generator().manual_seed(7)))]
    for _ in range(4):
        nearest = [
            min(float((position[i] - position[j]).norm()) for j in chosen) for i in range(10)
        ]
        chosen.append(max(range(10), key=lambda i: (nearest[i], -i)))
    assert select_views(row, ViewSelection(count=5, seed=7)).inputs == tuple(sorted(chosen))


def test_cameras_at_one_place_are_still_chosen_once_each(tmp_path):
    meta = read_meta(write_scene(tmp_path, 5))
    for frame in meta["frames"]:
        frame["transform_matrix"] = meta["frames"][0]["transform_matrix"]
    write_meta(tmp_path, meta)
    assert len(select_views(load_capture(tmp_path), ViewSelection(count=4)).inputs) == 4


def test_everything_not_chosen_is_held_out(row):
    split = select_views(row, ViewSelection(count=3, seed=1))
    assert len(split.inputs) == 3
    assert sorted(split.inputs + split.held_out) == list(range(10))
    assert select_views(row, ViewSelection(count=3, seed=1)) == split
    assert select_views(row, ViewSelection()).held_out == ()


def test_evenly(row):
    choice = ViewSelection(count=4, evenly=True)
    assert select_views(row, choice).inputs == (0, 3, 6, 9)


def test_names_and_indices(row):
    by_name = select_views(row, ViewSelection(names=("images/004.png", "002.png", "007")))
    assert by_name.inputs == (2, 4, 7)
    assert select_views(row, ViewSelection(indices=(7, 4, 2))) == by_name


def test_frames_that_must_not_be_chosen(row):
    choice = ViewSelection(count=3, held_out=(0, 9), evenly=True)
    split = select_views(row, choice)
    assert split.inputs == (1, 5, 8)
    assert {0, 9} <= set(split.held_out)


def write_split(folder, train, test, name="train_test_split_3.json"):
    (folder / name).write_text(json.dumps({"train_ids": train, "test_ids": test}))
    return folder / name


def test_a_split_file_counts_the_order_of_the_file(tmp_path):
    meta = read_meta(write_scene(tmp_path, 6))
    meta["frames"].reverse()
    write_meta(tmp_path, meta)
    path = write_split(tmp_path, [0, 4], [1, 2])
    capture = load_capture(tmp_path)
    assert capture.format == "seva"
    assert capture.names[0] == "images/005.png"
    split = select_views(capture, ViewSelection(split=path))
    assert (split.inputs, split.held_out) == ((0, 4), (1, 2))
    named = select_views(capture, ViewSelection(split=type(path)(path.name)))
    assert named == split


def test_poses_without_photos_keep_the_ids_of_others(tmp_path, caplog):
    meta = read_meta(write_scene(tmp_path, 5))
    meta["frames"][1]["file_path"] = None
    write_meta(tmp_path, meta)
    (tmp_path / "images/003.png").unlink()
    path = write_split(tmp_path, [0, 4], [1, 2, 3])
    capture = load_capture(tmp_path)
    assert len(capture) == 5
    split = select_views(capture, ViewSelection(split=path))
    assert (split.inputs, split.held_out) == ((0, 4), (2,))
    assert "2 of 3 held-out frames have no photo" in caplog.text
    assert select_views(capture, ViewSelection(count=3)).inputs == (0, 2, 4)
    with pytest.raises(InputError, match=r"The chosen photo .*003\.png is not there"):
        select_views(capture, ViewSelection(indices=(0, 3)))
    with pytest.raises(InputError, match="has 3 photos to choose from"):
        select_views(capture, ViewSelection(count=4))


def test_missing_photos_are_counted(tmp_path, caplog):
    folder = write_scene(tmp_path, 5)
    (folder / "images/003.png").unlink()
    assert select_views(load_capture(folder), ViewSelection()).inputs == (0, 1, 2, 4)
    assert "1 of 5 frames have no photo" in caplog.text
    assert "images/003.png" in caplog.text


@pytest.mark.parametrize(
    "lists",
    [
        {"train_filenames": ["images/000.png", "./images/002.png", "images/003.png"]},
        {"test_filenames": ["images/001.png"], "val_filenames": ["images/004.png"]},
        {
            "train_filenames": ["images/000.png", "images/002.png", "images/003.png"],
            "test_filenames": ["images/001.png"],
        },
    ],
)
def test_frames_that_the_file_keeps_from_training_are_held_out(tmp_path, lists):
    capture = load_capture(write_scene(tmp_path, 5, **lists))
    split = select_views(capture, ViewSelection())
    assert (split.inputs, split.held_out) == ((0, 2, 3), (1, 4))
    assert select_views(capture, ViewSelection(count=3)) == split
    with pytest.raises(InputError, match="has 3 photos to choose from"):
        select_views(capture, ViewSelection(count=4))
    assert select_views(capture, ViewSelection(indices=(1, 2))).inputs == (1, 2)


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        ([0, 10], [1], "train_ids of .* name frame 10; this scene has frames 0 to 9"),
        ([0, 1], [-1], "test_ids of .* name frame -1"),
        ([0, 1], [1, 2], "lists frame 1 both"),
        (["a"], [1], "needs a list of whole numbers `train_ids`"),
        ([0, 1], None, "needs a list of whole numbers `test_ids`"),
        ([0], [1], "At least two input views are needed: 1 came"),
    ],
)
def test_bad_splits(row, train, test, sentence):
    path = write_split(row.folder, train, test)
    with pytest.raises(InputError, match=sentence):
        select_views(row, ViewSelection(split=path))


def test_a_full_name_is_that_frame_alone_where_others_end_alike(tmp_path):
    meta = read_meta(write_scene(tmp_path, 4))
    (tmp_path / "images" / "003.png").rename(tmp_path / "000.png")
    meta["frames"][3]["file_path"] = "000.png"
    write_meta(tmp_path, meta)
    capture = load_capture(tmp_path)
    assert set(capture.names) >= {"000.png", "images/000.png"}
    for name in ("000.png", "images/000.png"):
        split = select_views(capture, ViewSelection(names=(name, "001.png")))
        assert name in {capture.names[i] for i in split.inputs}
        assert len(split.inputs) == 2
    with pytest.raises(InputError, match="matches 2 frames"):
        select_views(capture, ViewSelection(names=("000", "001.png")))


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"count": 11}, "11 input views were asked for"),
        ({"names": ("100.png", "000.png")}, "The name 100.png matches no frame"),
        ({"indices": (3, 10)}, "name frame 10"),
        ({"indices": (3,)}, "At least two input views are needed: 1 came"),
        ({"split": "gone.json"}, r"gone\.json was expected"),
    ],
)
def test_bad_choices(row, choice, sentence):
    if "split" in choice:
        choice = {"split": row.folder / choice["split"]}
    with pytest.raises(InputError, match=sentence):
        select_views(row, ViewSelection(**choice))


def test_contradicting_or_too_few_views_are_refused_at_once():
    with pytest.raises(InputError, match="not by 2 of them"):
        ViewSelection(count=3, indices=(1, 2))
    for count in (1, 0, -2):
        with pytest.raises(InputError, match="At least two input views"):
            ViewSelection(count=count)


def test_a_scene_of_one_photo(tmp_path):
    with pytest.raises(InputError, match="At least two input views are needed: 1 came"):
        select_views(load_capture(write_scene(tmp_path, 1)), ViewSelection())


def test_lists_that_leave_nothing_to_train_on_are_named(tmp_path):
    capture = load_capture(write_scene(tmp_path, 3, train_filenames=[]))
    with pytest.raises(InputError, match=r"0 came from .*, whose own lists hold out 3 of 3 frames"):
        select_views(capture, ViewSelection())


@pytest.mark.parametrize("harm", ["junk", "deleted", "folder"])
def test_held_out_photos_are_never_opened(tmp_path, harm):
    split = select_views(load_capture(write_scene(tmp_path, 6)), ViewSelection(count=3))
    before = load_scene(load_capture(tmp_path), split.inputs)
    for index in split.held_out:
        path = tmp_path / f"images/{index:03d}.png"
        path.unlink()
        if harm == "junk":
            path.write_bytes(b"held out")
        if harm == "folder":
            path.mkdir()
    capture = load_capture(tmp_path)
    choice = ViewSelection(indices=split.inputs)
    again = select_views(capture, choice)
    assert again.inputs == split.inputs
    assert again.held_out == (split.held_out if harm == "junk" else ())
    after = load_scene(capture, again.inputs)
    assert torch.equal(after.images, before.images)
    for index in split.held_out:
        with pytest.raises(InputError, match=rf"{index:03d}\.png"):
            load_scene(capture, (index,))
