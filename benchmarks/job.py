"""Trials as processes of their own, and the scores of what they rendered."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from case import Case
from methods import (
    IMPORTED,
    again_words,
    find_method,
    parse_weights,
    split_ending,
    weight_overrides,
)

from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.fold import Fold
from fvgen_recon.evaluation.judge import Jury
from fvgen_recon.evaluation.machine import plain_path
from fvgen_recon.evaluation.moment import frechet_between, kernel_between, save_moments
from fvgen_recon.evaluation.result import (
    Failure,
    TrialResult,
    trial_from_json,
    trial_to_json,
)
from fvgen_recon.evaluation.score import fit_render, read_renders, score_renders
from fvgen_recon.io.file import read_json, write_json
from fvgen_recon.io.image import write_image

HERE = Path(__file__).resolve().parent
RENDERS = "renders"
"""Folder of a trial with one picture a test view."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all trials of a run share."""

    iterations: int
    estimator: str
    seed: int
    overrides: tuple[str, ...]
    device: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One method on one case."""

    case: Case
    method: str
    """As on the command line."""
    label: str
    """Name in the results."""
    settings: Settings
    again: tuple[str, ...] = ()
    """How `refine.py` is told to render the splat of `base` again; nothing is trained then."""

    @property
    def base(self) -> "Trial | None":
        """The trial that trains what this one renders again; none for one that trains itself."""
        if not self.again:
            return None
        word, ending = split_ending(self.method)
        name = find_method(self.method).name
        label = self.label.replace(name, name.removesuffix(ending), 1)
        return replace(self, method=word, label=label, again=())

    @property
    def folder(self) -> Path:
        """Where it is kept: other settings are another folder, so nothing stale is read."""
        key = json.dumps(asdict(self.settings), sort_keys=True) + self.method
        key += "".join(self.again)
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        return self.case.folder / f"{self.label.replace(':', '_')}_{digest}"

    @property
    def score_file(self) -> Path:
        """Where its scores are kept."""
        return self.folder / "score.json"

    @property
    def is_finished(self) -> bool:
        """Whether its scores are there, of the photos and size of today."""
        return self.case.has_fold and self.score_file.is_file()

    @property
    def title(self) -> str:
        """What it is called while a run goes on."""
        return f"{self.case.scene}, {self.case.num_views} views, {self.label}"


def trials_of_case(case: Case, said: Mapping[str, Any]) -> list[Trial]:
    """Return the trials of a case by the options of a run.

    Raises:
        InputError: A method is unknown, or two have one name.
    """
    ending = f":{said['label']}" if said["label"] else ""
    names = said["methods"].split(",")
    methods = [find_method(name) for name in names]
    if len({method.name for method in methods}) < len(methods):
        raise InputError(f"Two methods have one name among {', '.join(names)}.")
    weights = parse_weights(said["weights"])
    return [
        Trial(
            case=case,
            method=name,
            label=method.name + ending,
            settings=Settings(
                iterations=said["iterations"],
                estimator=said["estimator"],
                seed=said["seed"],
                overrides=(*said["overrides"], *weight_overrides(method, weights)),
                device=said["device"],
            ),
            again=again_words(method, weights),
        )
        for name, method in zip(names, methods, strict=True)
    ]


def train_trial(trial: Trial, fold: Fold) -> None:
    """Train in a process that gets the fold and nothing else; finished trials are not run again.

    A trial that renders the splat of another one again needs that one to be finished.

    The process's working folder is the trial's, and no path to the whole scene is handed over.
    """
    done = trial.folder / "trial.json"
    if done.is_file() or trial.method.startswith(IMPORTED):
        return
    if trial.base is not None and not (trial.base.folder / "trial.json").is_file():
        return  # What failed in training has nothing to render.
    shutil.rmtree(trial.folder, ignore_errors=True)
    trial.folder.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": search_path()}
    with (trial.folder / "log.txt").open("w") as log:
        subprocess.run(
            _command(trial, fold), stdout=log, stderr=subprocess.STDOUT, cwd=trial.folder,
            env=environment, check=False,
        )  # fmt: skip


def _command(trial: Trial, fold: Fold) -> list[str]:
    """Return the command that trains a trial, or that renders a trained one again."""
    settings, base = trial.settings, trial.base
    places = ("--fold", str(fold.folder.resolve()), "--out", str(trial.folder.resolve()))
    shared = (*places, "--method", trial.method, "--device", settings.device)
    if base is not None:
        trained = ("--trained", str(base.folder.resolve()))
        return [sys.executable, str(HERE / "refine.py"), *shared, *trained, *trial.again]
    return [
        sys.executable,
        str(HERE / "trial.py"),
        *shared,
        *("--iterations", str(settings.iterations)),
        *("--estimator", settings.estimator, "--seed", str(settings.seed)),
        *(("--overrides", *settings.overrides) if settings.overrides else ()),
    ]


def search_path() -> str:
    """Return PYTHONPATH with absolute entries, as the trial has another working folder."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(str(Path(entry).resolve()) for entry in entries if entry)


def failure_of(trial: Trial, reason: str = "") -> Failure:
    """Return why a trial has no renders: the last line that it printed, without places here."""
    log = trial.folder / "log.txt"
    if trial.base is not None and not log.is_file():
        log = trial.base.folder / "log.txt"
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    said = lines[-1].strip() if lines else "no output"
    return Failure(
        scene=trial.case.scene,
        method=trial.label,
        num_views=trial.case.num_views,
        reason=(reason or said).replace(f"{Path.cwd()}/", ""),
    )


def score_trial(trial: Trial, fold: Fold, jury: Jury) -> TrialResult | Failure:
    """Compare a trial's renders with the held-out photos, which are opened here at the earliest."""
    if trial.score_file.is_file():
        return trial_from_json(read_json(trial.score_file))
    method = find_method(trial.method)
    note = _imported_note() if method.renders else _trial_note(trial.folder)
    if note is None:
        return failure_of(trial)
    try:
        if method.renders is not None:
            import_renders(trial, method.renders, fold)
        renders = read_renders(trial.folder / RENDERS, fold.test, trial.case.test_names)
        truth = trial.case.held_out(fold, jury.device)
        views, moments = score_renders(renders, truth, jury)
    except FvgenError as error:
        return failure_of(trial, str(error))
    has_features = len(moments) == 2
    result = TrialResult(
        scene=trial.case.scene,
        method=trial.label,
        num_views=trial.case.num_views,
        inputs=fold.inputs,
        rule=trial.case.split.rule,
        height=fold.height,
        width=fold.width,
        folder=f"{trial.case.folder.name}/{trial.folder.name}",
        views=tuple(views),
        frechet=frechet_between(*moments.values()) if has_features else None,
        kernel=kernel_between(*moments.values()) if has_features else None,
        **note,
    )
    if has_features:
        save_moments(trial.folder / "features.safetensors", moments)
    write_json(trial.score_file, trial_to_json(result))
    return result


def import_renders(trial: Trial, source: Path, fold: Fold) -> None:
    """Copy pictures that were made elsewhere into the trial, at the size of the photos.

    Raises:
        InputError: A picture is missing, or of another shape.
    """
    folder = source / trial.case.scene / str(trial.case.num_views)
    images = read_renders(folder, fold.test, trial.case.test_names)
    for view, image in zip(fold.test, images, strict=True):
        fitted = fit_render(image, fold.height, fold.width)
        write_image(trial.folder / RENDERS / f"{view:05d}.png", fitted)


def _trial_note(folder: Path) -> dict[str, Any] | None:
    """Return what the trial itself said, or none where it did not end."""
    path = folder / "trial.json"
    if not path.is_file():
        return None
    note = read_json(path)
    note.pop("method")
    return {**note, "overrides": tuple(map(plain_path, note["overrides"]))}


def _imported_note() -> dict[str, Any]:
    """Return what is known of renders that were made elsewhere."""
    return {
        "initialisation": "unknown",
        "iterations": None,
        "seed": None,
        "overrides": (),
        "seconds": {},
        "peak_gib": None,
        "num_gaussians": None,
    }
