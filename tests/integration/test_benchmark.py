"""The benchmark's command at small size on the example scene: methods, renders made elsewhere, a
method that looks at held-out photos, and the page."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.fold import read_fold
from fvgen_recon.evaluation.judge import load_jury
from fvgen_recon.evaluation.result import RunResult, read_result
from fvgen_recon.evaluation.table import frames_table
from fvgen_recon.io.scenes import load_capture

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Bench:
    """A finished run."""

    folder: Path
    result: RunResult
    code: int
    errors: str


def _command(folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "benchmarks" / "run.py"), "folder", "--data", "scenes",
        "--views", "3", "--iterations", "6", "--long-side", "96", "--frames-long-side", "96",
        "--work", "work", "--out", "result.json", "--parallel", "2", "--device", "cpu", *more,
    ]  # fmt: skip


def _call(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        ),
        "NERFSTUDIO_METHOD_CONFIGS": "cheater=cheating_method:cheater,"
        "late_cheater=cheating_method:late_cheater",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Run a method of ours, its splat refined, cheaters, and the photos as renders from
    elsewhere."""
    folder = tmp_path_factory.mktemp("bench")
    shutil.copytree(ROOT / "examples" / "room", folder / "scenes" / "room")
    renders = folder / "elsewhere" / "room" / "3"
    shutil.copytree(folder / "scenes" / "room" / "images", renders)
    methods = (
        "fvgen-splat-none,fvgen-splat-none+refine=fill,nerfstudio:cheater,"
        "nerfstudio:late_cheater+refine=fill,import:photos=elsewhere"
    )
    answer = _call(_command(folder, "--methods", methods), folder)
    assert (folder / "result.json").is_file(), answer.stderr[-4000:]
    return Bench(folder, read_result(folder / "result.json"), answer.returncode, answer.stderr)


def test_a_method_that_opens_held_out_photos_is_caught(bench: Bench) -> None:
    failures = bench.result.failures
    assert [failure.method for failure in failures] == ["cheater", "late_cheater+refine=fill"]
    assert all("expected and is not there" in failure.reason for failure in failures)
    # The second has trained before it looked.
    assert len(list(bench.folder.glob("work/**/late_cheater_*/trial.json"))) == 1
    assert bench.code == 1
    assert "cheater failed" in bench.errors


def test_what_the_cheater_wants_exists_outside_of_the_fold(bench: Bench) -> None:
    fold = read_fold(bench.folder / "work" / "folder" / "room_3" / "fold")
    whole, cut = load_capture(bench.folder / "scenes" / "room"), load_capture(fold.folder)
    ids = json.loads(fold.split.read_text())
    assert all(whole.has_photo(view) for view in fold.test)
    assert all(cut.has_photo(rank) for rank in ids["train_ids"])
    assert not any(cut.has_photo(rank) for rank in ids["test_ids"])
    files = {path.name for path in (fold.folder / "images").iterdir()}
    assert {int(Path(name).stem) for name in files} == set(fold.inputs)


def test_photos_as_renders_have_no_error(bench: Bench) -> None:
    photos = next(trial for trial in bench.result.trials if trial.method == "photos")
    assert photos.means["psnr"] > 45  # resized twice and stored with 8 bits
    assert photos.means["st_lpips_alex"] < 0.01
    assert photos.iterations is None


def test_a_trained_method_has_all_its_numbers(bench: Bench) -> None:
    ours = next(t for t in bench.result.trials if t.method == "fvgen-splat-none")
    assert ours.inputs == (0, 11, 24)
    assert [view.view for view in ours.views] == [4, 12, 20]
    assert 8 < ours.means["psnr"] < 30
    assert 0 < ours.means["seen_share"] < 1
    assert ours.frechet > 0
    assert set(ours.seconds) >= {"points", "train", "total"}
    assert ours.initialisation == "stereo"
    assert ours.num_gaussians > 100


def test_one_training_gives_the_splat_and_its_refined_renders(bench: Bench) -> None:
    trials = {trial.method: trial for trial in bench.result.trials}
    plain, refined = trials["fvgen-splat-none"], trials["fvgen-splat-none+refine=fill"]
    assert len(list(bench.folder.glob("work/**/fvgen-splat-none*/run"))) == 1
    assert refined.num_gaussians == plain.num_gaussians
    assert refined.overrides == ("pipeline.refine.generator=fill",)
    assert refined.means["psnr"] > plain.means["psnr"] + 0.3  # so few steps leave the splat raw
    seconds = refined.seconds
    assert seconds["refine_view"] == pytest.approx(seconds["refine"] / len(refined.views))
    added = seconds["refine"] + seconds["refine_load"]
    assert seconds["total"] == pytest.approx(plain.seconds["total"] + added)
    assert seconds["train"] == plain.seconds["train"]


def test_frames_are_measured_at_the_held_out_poses(bench: Bench) -> None:
    rows = {row.method: row for row in bench.result.frames}
    assert set(rows) == {"render", "fill"}
    assert rows["fill"].means["psnr"] > rows["render"].means["psnr"]
    assert rows["fill"].num_frames == len(bench.result.trials[0].views)
    for row in rows.values():
        means = row.means
        # Pixels that inputs see are easier, and all pixels lie between both kinds.
        assert means["psnr_unseen"] < means["psnr"] < means["psnr_seen"]
        assert 0 < means["seen_share"] < 1
        assert 0 < means["st_lpips_vgg"] < 2
        assert math.isfinite(means["kernel_efficientnet_lite0"])
        assert (bench.folder / "work" / "folder" / row.folder / "panel.png").is_file()
    for title in ("PSNR seen", "PSNR unseen", "ST-LPIPS (VGG)", "kernel (EfficientNet-Lite0)"):
        assert title in frames_table(bench.result)


@pytest.mark.parametrize(("estimator", "name"), [("stereo", "CombinedStereo"), ("mvs", "Learned")])
def test_frames_start_from_the_points_of_the_methods(
    estimator: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    run, frames = import_module("run"), import_module("frames")

    def say_estimator(*given: object, **_: object) -> None:
        raise InputError(next(type(g).__name__ for g in given if hasattr(g, "estimate")))

    monkeypatch.setattr(frames, "build_clips", say_estimator)
    options = run.Options(
        data=ROOT / "examples", estimator=estimator, views="3", device="cpu",
        out=tmp_path / "result.json", work=tmp_path / "work", frames_long_side=96,
    )  # fmt: skip
    (job,) = run.plan_frames(options, options.plan("3"))
    generators = frames.load_generators(("render",), "cpu")
    failure = frames.measure_frames(job, generators, load_jury("cpu"))
    assert failure.reason.startswith(name)


def test_a_second_run_repeats_nothing_and_says_the_same(bench: Bench) -> None:
    before = {path: path.stat().st_mtime for path in bench.folder.glob("work/**/trial.json")}
    assert len(before) == 3
    methods = "fvgen-splat-none,fvgen-splat-none+refine=fill,import:photos=elsewhere"
    answer = _call(
        _command(bench.folder, "--methods", methods, "--out", "again.json"), bench.folder
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    again = read_result(bench.folder / "again.json")
    assert again.trials == bench.result.trials
    assert again.frames == bench.result.frames
    assert {path: path.stat().st_mtime for path in before} == before


def test_the_result_names_its_machine_and_no_place_on_it(bench: Bench) -> None:
    machine = bench.result.machine
    assert machine["torch"]
    assert machine["command"].startswith("python benchmarks/run.py folder --data scenes")
    assert str(bench.folder) not in (bench.folder / "result.json").read_text()


def test_the_page_needs_nothing_but_itself(bench: Bench) -> None:
    script = str(ROOT / "benchmarks" / "report.py")
    command = [sys.executable, script, "--results", "result.json", "--out", "page.html"]
    answer = _call(command, bench.folder)
    assert answer.returncode == 0, answer.stderr[-2000:]
    page = (bench.folder / "page.html").read_text()
    assert not re.findall(r"(?:src|href)=['\"](?!data:|#)[^'\"]+", page)
    # Three inputs, the photo, two renders, and the generators' own frames.
    pictures = page.count("data:image/jpeg")
    assert pictures >= 3 + 3 + 1
    assert page.count("alt='room, 3 input views'") == 1
    away = _call([*command, "--work", "elsewhere"], bench.folder)
    assert away.returncode == 0, away.stderr[-2000:]
    page_away = (bench.folder / "page.html").read_text()
    assert "pictures of the generators&#x27; frames were not there" in page_away
    assert "data:image/webp" in page
    assert "<svg" in page
    assert "expected and is not there" in page  # the cheater's end


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": "nothing"}, "There is no method `nothing`"),
        ({"scenes": "attic"}, "the scenes attic are in"),
        ({"methods": "import:x=nowhere"}, "import:NAME=FOLDER"),
        ({"estimator": "dream"}, "There is no point-cloud estimator `dream`"),
        ({"weights": ("student=nowhere",)}, "Weights as GENERATOR=FOLDER"),
        ({"methods": "nothing+refine"}, "There is no method `nothing`"),
        ({"methods": f"import:x={ROOT}+refine"}, "elsewhere cannot be rendered again"),
        ({"views": "3;6"}, "Whole numbers with commas between them were expected: 3;6 came"),
        ({"features": ROOT / "absent.bin"}, "absent.bin was expected and cannot be read"),
        ({"suite": "moon"}, "There is no suite `moon`"),
        ({"methods": "fvgen-splat,fvgen-splat"}, "Two methods have one name"),
        ({"methods": "fvgen-splat", "generators": "dream"}, "There is no generator `dream`"),
    ],
)
def test_mistakes_end_with_one_sentence(
    changes: dict[str, Any],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    run = import_module("run")
    options = {"suite": "folder", "data": ROOT / "examples", "views": "3", "device": "cpu"}
    options |= {"out": tmp_path / "result.json", "work": tmp_path / "work", **changes}
    assert run.main(run.Options(**options)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()


def test_packed_scenes_have_the_same_splits_and_only_the_needed_photos(bench: Bench) -> None:
    script = str(ROOT / "benchmarks" / "pack.py")
    command = [sys.executable, script, "folder", "--data", "scenes", "--views", "3"]
    answer = _call([*command, "--out", "packed"], bench.folder)
    assert answer.returncode == 0, answer.stderr
    packed, whole = (load_capture(bench.folder / name / "room") for name in ("packed", "scenes"))
    assert packed.names == whole.names
    kept = {index for index in range(len(packed)) if packed.has_photo(index)}
    assert kept == {0, 11, 24, 4, 12, 20}
    for index in kept:
        assert packed.paths[index].read_bytes() == whole.paths[index].read_bytes()


def test_a_whole_scene_is_timed_part_by_part(bench: Bench) -> None:
    script = str(ROOT / "benchmarks" / "scene_time.py")
    answer = _call(
        [
            sys.executable, script, "--data", "scenes", "--out", "time.json", "--device", "cpu",
            "--methods", "fvgen-splat-render", "--generators", "fill", "--views", "3",
            "--iterations", "6", "--long-side", "96", "--generator-size", "48", "64",
            "--repeats", "1",
        ],
        bench.folder,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    content = json.loads((bench.folder / "time.json").read_text())
    (scene,), (generator,) = content["scenes"], content["generators"]
    assert scene["num_clips"] == 2
    parts = {key: value for key, value in scene["seconds"].items() if key != "total"}
    assert set(parts) == {"points", "plan", "render", "generate", "train"}
    assert sum(parts.values()) == pytest.approx(scene["seconds"]["total"])
    assert scene["command_seconds"] > scene["seconds"]["total"]
    assert generator["size"] == [48, 64]
    assert generator["seconds"] > 0
    assert "| room | fvgen-splat-render | 2 |" in answer.stdout
    # What the paper states stands beside it, marked as not measured.
    written = (bench.folder / "time.md").read_text()
    assert written in answer.stdout
    lines = [line.split(" | ") for line in written.splitlines()]
    rows = {line[0].strip("| "): line[1:] for line in lines}
    assert rows["fill"][:3] == ["0", "16", "48x64"]
    assert rows["fill"][4].startswith("here: ")
    for name, steps, seconds in (("ViewCrafter", "50", "66.3"), ("FVGen", "4", "5.1")):
        assert (rows[name][0], rows[name][3]) == (steps, seconds)
        assert rows[name][4].startswith("not measured here: one H100")


def test_teacher_and_student_are_timed_unless_others_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    options = import_module("scene_time").Options(data=ROOT / "examples", out=Path("time.json"))
    teacher, student = options.generators.split(",")
    assert student == "student"
    name, _, folder = teacher.partition("=")
    assert name == "teacher"
    assert (Path(folder) / "config.json").is_file()
