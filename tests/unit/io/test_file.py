import os

import pytest

from fvgen_recon.errors import InputError
from fvgen_recon.io.file import atomic_path, read_json, require_folder, write_json


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": [1, 2.5, None]})
    assert read_json(tmp_path / "a" / "b.json") == {"x": [1, 2.5, None]}


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "x.json").write_text('{"x": "é"}', encoding="utf-8-sig")
    assert read_json(tmp_path / "x.json") == {"x": "é"}


def fail_halfway(path):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent
        raise ZeroDivisionError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_halfway(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_durable_file_is_on_the_disk_before_it_replaces_another(tmp_path, monkeypatch):
    path, done = tmp_path / "a" / "x.txt", []
    sync, replace = os.fsync, os.replace

    def note_sync(handle):
        done.append(("sync", os.fstat(handle).st_ino))
        sync(handle)

    def note_replace(source, target):
        done.append(("replace", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    with atomic_path(path, is_durable=True) as temporary:
        temporary.write_text("new")
    file, folder = path.stat().st_ino, path.parent.stat().st_ino
    assert done == [("sync", file), ("replace", file), ("sync", folder)]
    done.clear()
    write_json(path, {})
    assert [what for what, _ in done] == ["replace"]  # Small files wait for no disk.


def test_content_that_json_cannot_hold_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", object())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["{", b"\xff\xfe\x00"])
def test_broken_json_names_the_file(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"x\.json is not valid JSON"):
        read_json(path)


def test_missing_json_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"x\.json was expected"):
        read_json(tmp_path / "x.json")


def test_folders_that_can_be_written_pass_and_are_not_made(tmp_path):
    require_folder(tmp_path)
    require_folder(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []


def test_protected_folders_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # Nothing is protected from root.
    with pytest.raises(InputError, match="is protected; name another"):
        require_folder(tmp_path / "a")
