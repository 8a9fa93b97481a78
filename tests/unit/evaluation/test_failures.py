"""The failure cases differ from their walk in what they say, and the card has their numbers."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fvgen_recon.io.file import read_json

ROOT = Path(__file__).resolve().parents[3]
SHOWN = ("fill", "student", "regression")


WORLD = {"kind": "table", "seed": 5002}


@pytest.fixture(scope="module")
def failures() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield import_module("failures")


@pytest.fixture(scope="module")
def options(failures: ModuleType):
    paths = {"picture": Path("x.jpg"), "out": Path("x.json")}
    return failures.Options(**paths, height=48, width=64, num_frames=4)


@pytest.fixture(scope="module")
def film(failures: ModuleType, options):
    return failures.photograph(failures.Case(name="plain", **WORLD), options)


def test_each_case_changes_what_it_says_and_keeps_the_walk(
    failures: ModuleType, options, film
) -> None:
    case = failures.Case(name="wide and bright", stops=1.0, widening=2.0, **WORLD)
    other = failures.photograph(case, options)
    assert torch.equal(other.images[0], film.images[0])
    bright = failures.expose(film.images[3:], 1.0)
    assert torch.allclose(other.images[3:], bright, atol=1e-3)
    share = other.cameras.K[:, 0, 0] / film.cameras.K[:, 0, 0]
    assert torch.allclose(share[[0, 3]], torch.ones(2))
    assert (share[1:3] < 0.6).all()
    assert torch.equal(other.cameras.c2w, film.cameras.c2w)
    for change in ({"repeats": 0.02}, {"gloss": 4.0}):
        other = failures.photograph(failures.Case(name="surface", **change, **WORLD), options)
        assert torch.equal(other.depth, film.depth)
        assert not torch.allclose(other.images, film.images, atol=0.05)
    for hard in failures.CASES:
        usual = failures.Case(name=hard.without.name, kind=hard.kind, seed=hard.seed)
        assert hard.without == usual


def test_an_unknown_source_of_points_is_told(
    failures: ModuleType, options, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.main(replace(options, estimator="magic")) == 2
    assert "error: There is no point-cloud estimator `magic`" in capsys.readouterr().err


def test_a_stop_is_twice_the_light(failures: ModuleType) -> None:
    image = torch.tensor([0.0, 0.2, 0.5, 1.0]).reshape(1, 1, 1, 4).expand(1, 3, 1, 4)
    light = failures.expose(image, 1.0) ** 2.2
    assert torch.allclose(light[..., :3], 2 * image[..., :3] ** 2.2, atol=1e-5)
    assert light.max() == 1
    assert torch.allclose(failures.expose(image, 0.0), image, atol=1e-6)


def test_generators_are_given_the_ends_alone(failures: ModuleType, film) -> None:
    case = failures.Case(name="plain", **WORLD)
    truth = failures.clip_of(case, film, "plane-sweep")
    assert truth.frames == (1, 2)
    assert torch.equal(truth.photos, film.images[1:3])
    assert truth.guidance.mask[1:3].any()
    dark = film.images.clone()
    dark[1:3] = 0
    again = failures.clip_of(case, replace(film, images=dark), "plane-sweep")
    assert torch.equal(again.guidance.frames, truth.guidance.frames)


def test_photos_are_as_steady_as_themselves_and_noise_is_less(failures: ModuleType, film) -> None:
    photos = film.images[1:-1]
    assert failures.surface_unsteadiness(photos, film) == pytest.approx(1.0)
    noise = 0.2 * torch.randn(photos.shape, generator=torch.Generator().manual_seed(0))
    assert failures.surface_unsteadiness(photos + noise, film) > 1.5


def test_the_picture_has_a_row_for_every_case(failures: ModuleType) -> None:
    pictures = tuple(torch.full((3, 20, 60), shade / 6) for shade in range(7))
    trial = failures.Trial(rows=(), pictures=pictures)
    data = failures.draw({case: trial for case in failures.CASES})
    size = failures.Image.open(failures.io.BytesIO(data)).size
    assert size == (7 * 60, 18 + len(failures.CASES) * (18 + 20))


def test_the_card_has_the_committed_numbers(failures: ModuleType) -> None:
    result = read_json(ROOT / "benchmarks" / "results" / "failures.json")
    card = (ROOT / "docs" / "model_card.md").read_text()
    rows = {(row["scene"], row["method"]): row for row in result["rows"]}

    def psnr(scene: str) -> str:
        return " / ".join(f"{rows[scene, name]['score']['psnr']:.2f}" for name in SHOWN)

    assert [case["name"] for case in result["cases"]] == [case.name for case in failures.CASES]
    for case in result["cases"]:
        assert f"{case['name']} | {psnr(case['name'])} | {psnr(case['without'])} |" in card
    room = [rows["room 5003", name] for name in SHOWN]
    for cells in (
        [f"{row['score']['flicker']:.3f}" for row in room],
        [f"{row['score']['unsteady']:.2f}" for row in room],
        [f"{row['unsteady_surface']:.2f}" for row in room],
    ):
        assert f"| {' | '.join(cells)} |" in card
