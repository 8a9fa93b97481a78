"""What a word of the benchmark's command line names."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from fvgen_recon.errors import InputError

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def methods(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("methods")


@pytest.mark.parametrize(
    ("word", "generator"),
    [
        ("fvgen-splat-none+refine", "regression"),
        ("fvgen-splat-none+refine=student", "student"),
        ("fvgen-splat-none", ""),
    ],
)
def test_the_ending_names_what_renders_are_mixed_with(methods, word, generator):
    method = methods.find_method(word)
    assert (method.name, method.registered) == (word, "fvgen-splat")
    assert (method.generator, method.refine) == ("none", generator)


@pytest.mark.parametrize(
    ("word", "file", "refine"),
    [
        ("fvgen-splat-none+file=black", "black", ""),
        ("fvgen-splat+file=white", "white", ""),
        ("fvgen-splat+refine=fill", "", "fill"),
    ],
)
def test_an_ending_asks_for_what_viewers_of_the_file_see(methods, word, file, refine):
    method = methods.find_method(word)
    assert (method.name, method.file, method.refine) == (word, file, refine)
    again = ("--file", file) if file else ("--overrides", f"pipeline.refine.generator={refine}")
    assert methods.again_words(method, {}) == again
    assert methods.again_words(methods.find_method("fvgen-splat"), {}) == ()


@pytest.mark.parametrize("word", ["fvgen-splat+file=red", "splatfacto+file=black"])
def test_files_of_our_splats_on_black_or_white_can_be_shown(methods, word):
    with pytest.raises(InputError, match="black or white with a method of fvgen-splat"):
        methods.find_method(word)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("fvgen-splat+refine=fill+file=black", "holds no refined renders"),
        ("fvgen-splat+refine=fill:median", "learned or mean was expected"),
        ("fvgen-splat+refine=fill:", "learned or mean was expected"),
    ],
)
def test_endings_that_make_no_sense_are_refused(methods, word, sentence):
    with pytest.raises(InputError, match=sentence):
        methods.find_method(word)


def test_weights_go_to_the_part_whose_generator_they_are(methods):
    method = methods.find_method("fvgen-splat-fill+refine=student")
    weights = {"student": (Path("weights"), 4)}
    assert methods.weight_overrides(method, weights) == ()
    assert methods.refine_overrides(method, weights) == (
        "pipeline.refine.generator=student",
        "pipeline.refine.weights=weights",
        "pipeline.refine.num_steps=4",
    )
    assert methods.refine_overrides(methods.find_method("fvgen-splat"), weights) == ()


def test_the_rule_by_which_both_are_put_together_can_be_named(methods):
    weights = {"fusion": (Path("network"), None)}
    learned = methods.find_method("fvgen-splat+refine=fill:learned")
    assert (learned.refine, learned.fusion) == ("fill", "learned")
    assert methods.refine_overrides(learned, weights) == (
        "pipeline.refine.generator=fill",
        "pipeline.refine.fusion=learned",
        "pipeline.refine.fusion_weights=network",
    )
    mean = methods.find_method("fvgen-splat+refine=fill:mean")
    assert methods.refine_overrides(mean, weights) == (
        "pipeline.refine.generator=fill",
        "pipeline.refine.fusion=mean",
    )
    default = methods.find_method("fvgen-splat+refine=fill")
    assert methods.refine_overrides(default, {}) == ("pipeline.refine.generator=fill",)
    assert methods.weight_overrides(learned, weights) == ()


def test_a_refined_trial_knows_the_one_that_trains(methods):
    job = importlib.import_module("job")
    said = {
        "methods": "fvgen-splat-none,fvgen-splat-none+refine",
        "label": "b",
        "weights": (),
        "iterations": 3,
        "estimator": "stereo",
        "seed": 0,
        "overrides": (),
        "device": "cpu",
    }
    case = SimpleNamespace(folder=Path("case"))
    plain, refined = job.trials_of_case(case, said)
    assert plain.base is None
    assert refined.base == plain
    assert refined.folder != plain.folder
    assert refined.label == "fvgen-splat-none+refine:b"
