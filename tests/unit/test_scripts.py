"""Every option of every script says what it is, and `--help` begins with what the script is for."""

import ast
import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fvgen_recon.densify.generators import GENERATORS
from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.suite import SUITES
from fvgen_recon.io.file import read_json
from fvgen_recon.pointcloud import ESTIMATORS
from fvgen_recon.pointcloud.mvs.config import MvsConfig
from fvgen_recon.pointcloud.mvs.network import MvsNetwork
from fvgen_recon.trajectory import PLANNERS
from scripts import calibrate_sweep, compare_pointclouds, train_mvs

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    path: calls[0]
    for folder in ("scripts", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if (
        calls := [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tyro.cli"
        ]
    )
}


def words_of(options: type) -> dict[str, str]:
    """Return the docstrings of fields by name."""
    found = {}
    for base in reversed(options.__mro__[:-1]):
        (tree,) = ast.parse(dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, words in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(words, ast.Expr):
                found[ast.unparse(field.target)] = ast.literal_eval(words.value)
    return found


def without_words(options: type, place: str = "") -> Iterator[str]:
    """Name the fields, of what these options hold too, that no docstring follows."""
    described, hints = words_of(options), typing.get_type_hints(options)
    for field in fields(options):
        if is_dataclass(hints[field.name]):
            yield from without_words(hints[field.name], f"{place}{field.name}.")
        elif field.name not in described:
            yield place + field.name


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
@pytest.mark.usefixtures("benchmarks")
def test_every_option_says_what_it_is(path: Path) -> None:
    call = COMMANDS[path]
    described = {word.arg: ast.unparse(word.value) for word in call.keywords}
    assert described["description"] == "__doc__"
    name = path.stem if path.parent.name == "benchmarks" else f"scripts.{path.stem}"
    module = import_module(name)
    options = eval(ast.unparse(call.args[0]), vars(module))
    missing = [one for kind in typing.get_args(options) or [options] for one in without_words(kind)]
    assert missing == []


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_usage_names_the_script_itself_and_lines_that_a_shell_can_take(path: Path) -> None:
    words = ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""
    assert path.relative_to(ROOT).as_posix() in words or "runs these" in words
    assert "        --" not in "".join(line for line in words.split("\n") if "python" in line)


@pytest.mark.parametrize(
    ("place", "name", "choices"),
    [
        ("fvgen_recon.densify.densifier.DensifyConfig", "estimator", ESTIMATORS),
        ("fvgen_recon.densify.densifier.DensifyConfig", "planner", PLANNERS),
        ("fvgen_recon.densify.generators.GeneratorConfig", "name", GENERATORS),
        ("fvgen_recon.distill.shard_plan.ShardSettings", "estimator", ESTIMATORS),
        ("scripts.build_bank.Arguments", "estimator", ESTIMATORS),
        ("scripts.calibrate_confidence.Arguments", "estimator", ESTIMATORS),
        ("scripts.eval_student.Arguments", "estimator", ESTIMATORS),
        ("run.Options", "suite", SUITES),
    ],
)
@pytest.mark.usefixtures("benchmarks")
def test_an_option_with_choices_names_each(place: str, name: str, choices: Iterable[str]) -> None:
    module, _, kind = place.rpartition(".")
    words = words_of(getattr(import_module(module), kind))[name]
    named = re.split(r"[^a-z0-9-]+", words)
    assert [choice for choice in choices if choice not in named] == []


def test_the_page_of_the_benchmarks_names_every_command() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text()
    commands = [path.name for path in COMMANDS if path.parent.name == "benchmarks"]
    assert [name for name in commands if name not in page] == []


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("scripts.compare_pointclouds:compare:Options", {"scenes": (), "estimators": ("magic",)}),
        ("scripts.build_bank:main:Arguments", {"estimator": "magic"}),
        ("scripts.build_bank:main:Arguments", {"recipe": "magic"}),
        ("scripts.eval_student:make_bench:Arguments", {"estimator": "magic"}),
        ("scripts.train_compact:main:Arguments", {"recipe": "magic"}),
        ("student_leg:main:Leg", {"recipe": "magic"}),
        ("student_ablation:main:Options", {"recipe": "magic"}),
        ("design:main:Options", {"recipe": "magic"}),
    ],
)
@pytest.mark.usefixtures("benchmarks")
def test_a_name_that_is_unknown_is_told_before_any_work(
    place: str, changes: dict[str, object], tmp_path: Path
) -> None:
    name, function, kind = place.split(":")
    module = import_module(name)
    options = getattr(module, kind)
    needed = [one.name for one in fields(options) if one.default is MISSING]
    paths = dict.fromkeys(needed, tmp_path / "absent")
    with pytest.raises(InputError, match=r"There is no .* `magic`: choose one of"):
        getattr(module, function)(options(**{**paths, **changes}))
    assert not (tmp_path / "absent").exists()


def test_a_folder_of_scenes_that_is_not_there_is_told(tmp_path: Path) -> None:
    absent, out = tmp_path / "absent", tmp_path / "out"
    with pytest.raises(InputError, match=r"A folder of scenes .*absent is not there"):
        compare_pointclouds.compare(compare_pointclouds.Options(scenes=(absent,), output=out))
    with pytest.raises(InputError, match=r"A folder of scenes .*absent is not there"):
        calibrate_sweep.main(calibrate_sweep.Arguments(scenes=absent, out=out))
    assert torch.is_grad_enabled()
    assert not out.exists()


def test_a_training_of_the_stereo_network_says_where_it_ran(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(
        step=1, seconds=2.0, average=MvsNetwork(MvsConfig()), save=lambda path: None
    )
    train_mvs.save(train_mvs.Arguments(train=tmp_path, val=tmp_path, out=tmp_path), trainer, [])
    content = read_json(tmp_path / "curve.json")
    assert content["machine"]["torch"] == torch.__version__
    assert content["training"]["steps"] == 1
