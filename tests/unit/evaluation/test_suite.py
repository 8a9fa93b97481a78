"""Suites find their scenes, photos and splits, and say what they expect."""

import json
import shutil

import pytest
from room_folder import write_room

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.protocol import fsgs_split
from fvgen_recon.evaluation.suite import SUITES, choose_split, find_scenes, open_scene
from fvgen_recon.io.scenes import load_capture


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("suite") / "data"
    write_room(base / "room", num_photos=18, height=16, width=24)
    return base


def test_scenes_are_found_by_name(data):
    suite = SUITES["folder"]
    assert [path.name for path in find_scenes(suite, data)] == ["room"]
    with pytest.raises(InputError, match=r"the scenes attic are in .*README"):
        find_scenes(suite, data, ("attic",))


@pytest.mark.parametrize("name", list(SUITES))
def test_missing_data_say_the_layout(name, tmp_path):
    with pytest.raises(InputError, match="expects DATA/") as caught:
        find_scenes(SUITES[name], tmp_path / "nothing")
    assert "\n" not in str(caught.value)


def test_a_small_scene_gives_all_that_is_left(data):
    capture = load_capture(data / "room")
    few = choose_split(SUITES["folder"], "room", capture, 9, data / "none.json")
    assert len(few.inputs) == 9
    many = choose_split(SUITES["folder"], "room", capture, 99, data / "none.json")
    assert set(many.inputs) | set(many.test) == set(range(18))
    assert "only 16 for 99" in many.rule


def test_floor_and_nearest_are_two_suites(data):
    capture = load_capture(data / "room")
    near, floor = (
        choose_split(SUITES[name], "room", capture, 6, data / "none.json")
        for name in ("mipnerf360-fsgs", "mipnerf360-floor")
    )
    assert near.test == floor.test == (0, 8, 16)
    assert near.inputs != floor.inputs
    assert near.inputs == fsgs_split(18, 6).inputs
    assert "(round)" in near.rule
    assert "(floor)" in floor.rule


def test_farthest_points_are_nested_and_frozen(data, tmp_path):
    suite, capture = SUITES["tanks-and-temples"], load_capture(data / "room")
    frozen = tmp_path / "lists.json"
    three, six = (choose_split(suite, "room", capture, n, frozen) for n in (3, 6))
    assert set(three.inputs) < set(six.inputs)
    assert not set(six.inputs) & set(six.test)
    assert six.test == (0, 8, 16)
    lists = json.loads(frozen.read_text())
    assert lists["room"]["train"]["3"] == list(three.inputs)
    lists["room"]["train"]["3"] = [1, 2, 3]
    frozen.write_text(json.dumps(lists))
    assert choose_split(suite, "room", capture, 3, frozen).inputs == (1, 2, 3)
    lists["room"]["num_images"] = 7
    frozen.write_text(json.dumps(lists))
    with pytest.raises(InputError, match="of 7 photos and 18 were found"):
        choose_split(suite, "room", capture, 3, frozen)


def test_reduced_photos_are_found_by_name_or_by_order(data, tmp_path, caplog):
    room = tmp_path / "room"
    shutil.copytree(data / "room", room)
    assert open_scene(SUITES["llff"], room).paths == load_capture(room).paths
    assert "has no images_8/: its photos' own size is used" in caplog.text
    caplog.clear()
    shutil.copytree(room / "images", room / "images_8")
    by_name = open_scene(SUITES["llff"], room)
    assert {path.parent.name for path in by_name.paths} == {"images_8"}
    assert caplog.text == ""
    assert [p.name for p in by_name.paths] == [p.name for p in load_capture(room).paths]
    for index, path in enumerate(sorted((room / "images_8").iterdir())):
        path.rename(path.with_name(f"image{index:03d}.png"))
    by_order = open_scene(SUITES["llff"], room)
    assert [p.name for p in by_order.paths] == [f"image{i:03d}.png" for i in range(18)]
