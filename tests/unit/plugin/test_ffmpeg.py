"""ffmpeg is lent where there is one to lend, and missed by nobody where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import pytest
from nerfstudio.utils.install_checks import check_ffmpeg_installed
from pipelines import open_pipeline, write_room

from fvgen_nerfstudio.ffmpeg import lend_ffmpeg


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set a PATH without ffmpeg and return it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return str(tmp_path)


def _fail() -> str:
    raise RuntimeError("no ffmpeg program")


ABSENT = {"no package": None, "no program": SimpleNamespace(get_ffmpeg_exe=_fail)}


def test_ffmpeg_is_lent_under_its_own_name(bare):
    lend_ffmpeg()
    found = shutil.which("ffmpeg")
    assert found is not None
    assert Path(found).resolve() == Path(imageio_ffmpeg.get_ffmpeg_exe()).resolve()
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("ffmpeg version")
    path = os.environ["PATH"]
    lend_ffmpeg()
    assert os.environ["PATH"] == path


@pytest.mark.parametrize("module", ABSENT.values(), ids=ABSENT)
def test_a_finished_run_opens_where_there_is_none(module, bare, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", module)
    write_room(tmp_path / "room")
    config = open_pipeline(tmp_path / "room", generator="none").config
    for test_mode in ("test", "inference"):
        assert config.setup(device="cpu", test_mode=test_mode).test_mode == test_mode
    assert os.environ["PATH"] == bare
    with pytest.raises(SystemExit):
        check_ffmpeg_installed()  # What ns-render asks before it makes a video.
    assert "ffmpeg" in capsys.readouterr().out
