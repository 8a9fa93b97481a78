"""Runs that nerfstudio's tools cannot open: one sentence where their files are to blame."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.utils.eval_utils import eval_setup
from pipelines import write_room

from fvgen_nerfstudio.diagnosis import find_damage
from fvgen_recon.errors import FvgenError

_PROGRAM = """
from fvgen_nerfstudio.failure import tell_uncaught
from fvgen_recon.errors import InputError
tell_uncaught()
tell_uncaught()
raise InputError("A number was expected.")
"""


def test_a_mistake_that_nobody_catches_ends_with_one_sentence():
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (2, "error: A number was expected.\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with its configuration and no checkpoint."""
    write_room(tmp_path / "room")
    config = copy.deepcopy(all_methods["fvgen-splat-cpu"])
    config.data, config.output_dir, config.timestamp = tmp_path / "room", tmp_path, "now"
    config.pipeline.datamanager.dataparser.estimator = "random"
    config.pipeline.datamanager.data = config.data
    config.set_experiment_name()
    config.write_config()
    (config.get_base_dir() / "nerfstudio_models").mkdir()
    return config.get_base_dir()


def _told(run: Path) -> FvgenError | None:
    """Open a run as nerfstudio's tools do, and return what they would tell of the failure."""
    with pytest.raises(Exception) as failure:  # noqa: PT011 - any may come, that is the point.
        eval_setup(run / "config.yml")
    error = failure.value
    return error if isinstance(error, FvgenError) else find_damage(error)


@pytest.mark.parametrize("kept", [0, 0.001, 0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_config_that_is_cut_short_is_never_filled_up_in_silence(run, kept):
    text = (run / "config.yml").read_text()
    (run / "config.yml").write_text(text[: int(kept * len(text))])
    assert "config.yml" in str(_told(run))


@pytest.mark.parametrize("line", ["", "a: [1", "!!python/object:fvgen_nerfstudio.gone.Config {}"])
def test_a_config_that_is_none_is_named(run, line):
    (run / "config.yml").write_text(line)
    assert f"{run / 'config.yml'} is damaged or not the config.yml" in str(_told(run))
    (run / "config.yml").write_bytes(b"\xff\xfe\x00")
    assert "is damaged" in str(_told(run))
    (run / "config.yml").unlink()
    assert "There is no file" in str(_told(run))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("step-000000003.ckpt", b"nothing of the kind", "not a checkpoint"),
        ("step-000000003.ckpt", b"", "not a checkpoint"),
        ("notes.txt", b"mine", "cannot read a step out of notes.txt"),
        (None, b"", "There are no checkpoints"),
    ],
)
def test_a_checkpoint_that_is_none_is_named(run, name, content, sentence):
    if name is not None:
        (run / "nerfstudio_models" / name).write_bytes(content)
    assert sentence in str(_told(run))


def test_files_that_are_in_order_and_other_methods_are_not_blamed(run, tmp_path, monkeypatch):
    assert find_damage(ValueError("elsewhere")) is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yml").write_text("a: [1")
    assert _told(tmp_path / "other") is None
    monkeypatch.setattr("fvgen_nerfstudio.pipeline.FvgenPipeline.__init__", None)
    assert _told(run) is None
