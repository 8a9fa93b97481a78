"""A page draws itself from results and pictures and asks nothing of the outside."""

import base64
import importlib
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fvgen_recon.evaluation import html
from fvgen_recon.evaluation.picture import animation_uri, error_map, jpeg_uri, shrink
from fvgen_recon.evaluation.plot import metrics_plot, time_plot
from fvgen_recon.evaluation.report import (
    Gallery,
    downstream_section,
    failure_section,
    frames_section,
    gain_section,
    gallery_section,
    published_section,
    scene_section,
)
from fvgen_recon.evaluation.result import (
    Failure,
    FrameResult,
    RunResult,
    TrialResult,
    write_result,
)
from fvgen_recon.evaluation.score import ViewScore

ROOT = Path(__file__).resolve().parents[3]
_HARD = ("a", "splatfacto")


def make_trial(scene: str, method: str, psnr: float, num_views: int = 3) -> TrialResult:
    views = tuple(
        ViewScore(
            view=view,
            psnr=psnr + view,
            ssim=0.5,
            psnr_seen=psnr,
            psnr_unseen=math.nan,
            ssim_seen=0.5,
            seen_share=0.7,
            distances={"st_lpips_alex": 1 / psnr},
        )
        for view in (0, 1, 2)
    )
    return TrialResult(
        scene=scene,
        method=method,
        num_views=num_views,
        inputs=(0, 5),
        rule="by hand",
        height=40,
        width=60,
        initialisation="dataset",
        iterations=10,
        seed=0,
        overrides=(),
        seconds={"points": 2.0, "train": 3.0, "total": 5.0},
        peak_gib=1.5,
        num_gaussians=1234,
        folder="",
        views=views,
        frechet=3.0,
        kernel=None,
    )


@pytest.fixture
def trials() -> list[TrialResult]:
    return [
        make_trial(scene, method, psnr, views)
        for views in (3, 6)
        for scene, base in (("a", 10.0), ("b", 20.0))
        for method, psnr in (
            ("splatfacto", base),
            ("fvgen-splat-none", base + 2),
            ("fvgen-splat-student", base + 3),
        )
    ]


def test_the_best_is_marked_by_what_is_better(trials) -> None:
    text = "".join(downstream_section(trials))
    assert "<td class=best>19.00</td>" in text  # (13 + 23) / 2 + 1
    assert "<td class=best>17.00</td>" not in text
    lowest = sum(1 / (base + 3) for base in (10, 20)) / 2
    assert f"<td class=best>{lowest:.3f}</td>" in text
    assert "class=best>0.500" not in text  # all the same: nobody is best


def test_the_gain_is_split(trials) -> None:
    text = "".join(gain_section(trials))
    assert "fvgen-splat-none over splatfacto</td><td>2</td><td>+2.00" in text
    assert "fvgen-splat-student over fvgen-splat-none</td><td>2</td><td>+1.00" in text
    assert gain_section([t for t in trials if t.method != "splatfacto"]) == []


def test_every_scene_names_its_initialisation_and_parts(trials) -> None:
    text = "".join(scene_section(trials))
    for piece in ("<td>dataset</td>", "1,234", "<td>2.0</td>", "<td>1.5</td>", "by hand"):
        assert piece in text
    assert "triangulated with every photo" in text


def test_frames_and_failures_have_tables() -> None:
    frame = FrameResult(
        scene="a",
        method="fill",
        num_views=3,
        num_steps=0,
        num_clips=2,
        num_frames=5,
        seconds_points=1.0,
        seconds_render=0.25,
        seconds_generate=0.125,
        peak_gib=None,
        means={"psnr": 12.345, "psnr_hole": math.nan},
    )
    text = "".join(frames_section([frame]))
    assert "VGG" not in text  # a number that no row has gets no column
    whole = replace(frame, means={**frame.means, "st_lpips_vgg": 0.25, "lpips_vgg": 0.5})
    text_both = "".join(frames_section([frame, replace(whole, method="student")]))
    assert "<th>ST-LPIPS (VGG)</th><th>LPIPS (VGG)</th>" in text_both
    assert "<td>-</td><td>0.250</td><td>0.500</td>" in text_both
    assert "<td>12.35</td><td>-</td>" in text or "<td>12.34</td><td>-</td>" in text
    assert failure_section([]) == []
    failure = Failure(scene="a", method="m", num_views=3, reason="a < b")
    assert "a &lt; b" in "".join(failure_section([failure]))


def test_published_rows_have_their_protocol() -> None:
    published = json.loads((ROOT / "benchmarks" / "published.json").read_text())
    text = "".join(published_section(published, "mipnerf360"))
    assert "ArtiFixer3D" in text
    assert text.count("Protocol: ") == text.count("Source: ") == text.count("<table>") == 2
    assert published_section(published, "folder") == []
    for block in published["blocks"]:
        for groups in block["rows"].values():
            assert [len(group) for group in groups] == [len(block["columns"])] * len(block["views"])


def open_uri(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_pictures_are_what_they_were(rng) -> None:
    image = torch.full((3, 40, 60), 0.5)
    assert shrink(image, 30).shape == (3, 20, 30)
    assert shrink(image, 90) is image
    assert open_uri(jpeg_uri(image)).size == (60, 40)
    movie = open_uri(animation_uri([image, 0 * image, image]))
    assert movie.n_frames == 3
    colours = error_map(image, image)
    assert float(colours.max()) < 0.02  # no error is black
    assert float(error_map(image, image + 0.5)[0, 0, 0]) > 0.9


def test_a_gallery_shows_the_middling_view_of_every_method(trials, rng) -> None:
    pictures = {view: torch.rand(3, 40, 60, generator=rng) for view in (0, 1, 2)}
    methods = ("splatfacto", "fvgen-splat-none")
    gallery = Gallery(
        scene="a",
        num_views=3,
        inputs={0: pictures[0], 5: pictures[1]},
        truths=pictures,
        renders={method: pictures for method in methods},
    )
    text = "".join(gallery_section(gallery, trials))
    assert "photo of test view 1; below it the input 0" in text
    assert "splatfacto, 11.00 dB" in text
    assert "fvgen-splat-none, 13.00 dB" in text
    assert text.count("data:image/jpeg") == 2 + 3
    assert text.count("data:image/webp") == 1


def test_no_mean_is_called_best_where_methods_have_different_scenes(trials) -> None:
    whole = "".join(downstream_section(trials))
    assert "best" in whole
    assert "cannot be compared" not in whole
    # Without its hard scene the worst method has the highest mean.
    three = [t for t in trials if t.num_views == 3]
    part = "".join(downstream_section([t for t in three if (t.scene, t.method) != _HARD]))
    assert "best" not in part
    assert "cannot be compared" in part


def test_plots_are_inside_the_page(trials) -> None:
    for svg in (metrics_plot(trials, ("psnr", "ssim")), time_plot(trials)):
        assert svg.startswith("<svg")
        assert svg.rstrip().endswith("</svg>")


def test_a_page_asks_nothing_of_the_outside(trials) -> None:
    parts = [*downstream_section(trials), metrics_plot(trials, ("psnr",)), html.note("<b>")]
    text = html.page("Title & more", parts)
    assert "<title>Title &amp; more</title>" in text
    assert "&lt;b&gt;" in text
    assert not re.findall(r"(?:src|href)=['\"](?!data:|#)[^'\"]+", text)
    assert "<script" not in text
    assert "@import" not in text


def test_a_page_says_where_it_looked_for_scenes(tmp_path, monkeypatch, capsys) -> None:
    """Results hold no absolute paths, so the scenes of a run elsewhere have to be named."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = importlib.import_module("report")
    result = RunResult(
        suite="folder",
        machine={"gpu": None, "num_cpus": 2, "cpu": "x", "torch": "2", "commit": "a", "date": "b"}
        | {"command": "c"},
        settings={"data": "scenes", "views": "3", "scenes": "", "long_side": 0}
        | {"work": "work", "splits": "splits"},
        trials=(make_trial("a", "fvgen-splat-none", 10.0),),
        frames=(),
        failures=(),
    )
    write_result(tmp_path / "result.json", result)
    monkeypatch.chdir(tmp_path)
    options = report.Options(results=(tmp_path / "result.json",), out=tmp_path / "page.html")
    assert report.main(options) == 2
    assert "not in scenes: say where with --data" in capsys.readouterr().err
    assert report.main(replace(options, pictures=False)) == 0
