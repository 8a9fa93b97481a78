"""What `ns-render` was asked for that the run it has opened cannot give.

nerfstudio ends in an assertion or an array's error there. Its own frame knows what was asked for.
"""

import json
import traceback
from typing import Any

from nerfstudio.scripts import render

from fvgen_nerfstudio.pipeline import FvgenPipeline
from fvgen_recon.errors import InputError


def find_misuse(error: Exception) -> InputError | None:
    """Return what a user asked for in vain; none where the program or another method is to blame.

    Args:
        error: What ended the tool.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    asked = [f for f in frames if f.f_code.co_name == "main" and f.f_globals is vars(render)]
    if not asked or not isinstance(asked[-1].f_locals.get("pipeline"), FvgenPipeline):
        return None
    return _explain(error, asked[-1].f_locals["self"], asked[-1].f_locals)


def _explain(error: Exception, tool: Any, known: dict[str, Any]) -> InputError | None:
    """Return what a tool lacked, from the values that it had when it stopped."""
    cameras = known.get("cameras")
    if isinstance(tool, render.RenderInterpolated) and cameras is not None and len(cameras) < 2:
        return InputError(
            "A path needs two views to lead from one to the other, and this run holds out one: add "
            "--pose-source train, whose views are the input photos."
        )
    if isinstance(tool, render.SpiralRender) and isinstance(error, AssertionError):
        return InputError(
            "nerfstudio draws spirals for methods that sample rays, not for splats: use ns-render "
            "interpolate or camera-path."
        )
    if isinstance(tool, render.RenderCameraPath) and isinstance(
        error, OSError | json.JSONDecodeError
    ):
        return InputError(
            f"The camera path {tool.camera_path_filename} cannot be read ({error}): give the file "
            "that the viewer exported."
        )
    return None
