"""What `ns-render` cannot do with a run ends with one sentence."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from factories import make_cameras
from nerfstudio.scripts import render

from fvgen_nerfstudio import failure
from fvgen_nerfstudio.camera import to_nerfstudio
from fvgen_nerfstudio.pipeline import FvgenPipeline


def _render(tool: render.BaseRender, pipeline: object, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let a tool fail with a run that holds out one photo, and return what a user reads."""
    monkeypatch.setattr(render, "eval_setup", lambda *_, **__: (None, pipeline, None, None))
    monkeypatch.setattr(render.install_checks, "check_ffmpeg_installed", lambda: None)
    with pytest.raises(Exception) as stopped:  # noqa: PT011 - any may come, that is the point.
        tool.main()
    assert isinstance(stopped.value, Exception)
    return str(failure._mistake(stopped.value))


@pytest.fixture
def pipeline() -> FvgenPipeline:
    made = object.__new__(FvgenPipeline)
    dataset = SimpleNamespace(cameras=to_nerfstudio(make_cameras(1)))
    made.datamanager = SimpleNamespace(eval_dataset=dataset, train_dataset=dataset)  # pyright: ignore[reportAttributeAccessIssue]
    return made


@pytest.mark.parametrize(
    ("tool", "sentence"),
    [
        (render.RenderInterpolated(load_config=Path()), "add --pose-source train"),
        (render.SpiralRender(load_config=Path()), "use ns-render interpolate or camera-path"),
        (
            render.RenderCameraPath(load_config=Path(), camera_path_filename=Path("gone.json")),
            "The camera path gone.json cannot be read",
        ),
    ],
)
def test_what_a_run_cannot_give_is_one_sentence(tool, sentence, pipeline, monkeypatch):
    assert sentence in _render(tool, pipeline, monkeypatch)


def test_other_methods_and_other_errors_are_left_alone(pipeline, monkeypatch):
    tool = render.RenderInterpolated(load_config=Path())
    other = SimpleNamespace(datamanager=pipeline.datamanager)
    assert _render(tool, other, monkeypatch) == "None"
    pipeline.datamanager.eval_dataset.cameras = None
    assert _render(tool, pipeline, monkeypatch) == "None"
