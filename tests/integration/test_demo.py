"""`make demo`: the whole run in a few steps, and what it does when a part fails."""

from pathlib import Path

import pytest
from PIL import Image

from fvgen_recon.densify.bank import Bank
from fvgen_recon.densify.generators import DEFAULT_GENERATOR
from fvgen_recon.io.file import read_json
from fvgen_recon.io.image import read_image
from fvgen_recon.io.ply import read_points
from scripts.demo import METHOD, VARIANTS, Command, Options, compare, main, run_together

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_demo_leaves_metrics_a_splat_a_picture_and_a_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(Options(data=ROOT / "examples" / "room", output=tmp_path, iterations=8))
    metrics = read_json(tmp_path / "metrics.json")
    assert set(metrics) == set(VARIANTS)
    printed = capsys.readouterr().out
    for result in metrics.values():
        assert 8 < result["psnr"] < 60
        assert f"{result['psnr']:.2f}" in printed
    assert f"21 held-out views, generator `{DEFAULT_GENERATOR}`" in printed
    assert len(read_points(tmp_path / "splat.ply")) > 1000
    assert read_image(tmp_path / "comparison.png").shape[-1] == 3 * 256
    assert (tmp_path / "fly_through.mp4").stat().st_size > 5000
    runs = {name: tmp_path / "runs" / name / METHOD / "demo" for name in VARIANTS}
    assert len(Bank(runs["generated"] / "bank")) == 3 * 14
    assert not (runs["photos_only"] / "bank").exists()


def test_photo_and_splats_stand_side_by_side(tmp_path: Path) -> None:
    shades = {"photos_only": 100, "generated": 200}
    for name, shade in shades.items():
        for index in range(4):
            picture = Image.new("RGB", (20, 8), (shade, index, 0))
            picture.paste((50, index, 0), (0, 0, 10, 8))
            path = tmp_path / "eval" / name / f"eval_img_{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    sheet = Image.open(compare(Options(output=tmp_path)))
    for row in range(3):
        height = sheet.height - 4 - 8 * (2 - row)
        pixels = [sheet.getpixel((x, height)) for x in (5, 15, 25)]
        assert pixels == [(50, row + 1, 0), (100, row + 1, 0), (200, row + 1, 0)]


def test_a_part_that_fails_ends_the_demo_and_shows_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Command(("python", "-c", "print('fine')"), tmp_path / "good.txt")
    bad = Command(("python", "-c", "import sys; sys.exit('no such luck')"), tmp_path / "bad.txt")
    with pytest.raises(SystemExit) as stop:
        run_together([good, bad])
    assert stop.value.code == 1
    assert "no such luck" in capsys.readouterr().err
    assert good.log.read_text() == "fine\n"
