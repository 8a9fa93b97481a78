"""The methods that the benchmark can run, and what stock nerfstudio needs to run offline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fvgen_recon.densify.generators import DEFAULT_GENERATOR
from fvgen_recon.errors import InputError

REGISTERED = "nerfstudio:"
"""Prefix of a method that any plugin has registered with nerfstudio."""
IMPORTED = "import:"
"""Prefix of renders that were made elsewhere: `import:NAME=FOLDER`."""
REFINED = "+refine"
"""Ending of a method whose splat is rendered again, each view mixed with a generator's frame:
`METHOD+refine`, `METHOD+refine=GENERATOR`, or `METHOD+refine=GENERATOR:RULE`, where RULE is how
both are put together, learned or mean."""
FILED = "+file="
"""Ending of a method whose splat is rendered again as viewers of its exported file show it, on
black or white: `METHOD+file=black`."""
COLORS = ("black", "white")
RULES = ("learned", "mean")
FUSION = "fusion"
"""Name under which weights of the network that puts both together are given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A method of the benchmark."""

    name: str
    """Name in tables."""
    registered: str = ""
    """nerfstudio's name for it; empty for imported renders."""
    generator: str = "none"
    """What fills the views, for methods of this project."""
    estimator: str | None = None
    """Source of the points to start from, where the method brings its own."""
    renders: Path | None = None
    """Folder with SCENE/VIEWS/VIEW.png of imported renders."""
    refine: str = ""
    """What the renders of the trained splat are mixed with; empty for the splat alone."""
    fusion: str = ""
    """How both are put together; empty for the plugin's default."""
    file: str = ""
    """Colour on which its exported file is shown; empty for renders as the plugin makes them."""

    @property
    def is_ours(self) -> bool:
        """Whether it is one of this project's."""
        return self.registered == "fvgen-splat"


def _ours(name: str, generator: str, estimator: str | None = None) -> Method:
    return Method(name=name, registered="fvgen-splat", generator=generator, estimator=estimator)


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(name="splatfacto", registered="splatfacto"),
        _ours("fvgen-splat", "default"),
        _ours("fvgen-splat-none", "none"),
        _ours("fvgen-splat-render", "render"),
        _ours("fvgen-splat-fill", "fill"),
        _ours("fvgen-splat-student", "student"),
        _ours("fvgen-splat-teacher", "teacher"),
        _ours("fvgen-splat-regression", "regression"),
        _ours("fvgen-splat-dust3r", "default", "dust3r"),
    )
}
"""`fvgen-splat-none` is the splat for sparse views without any generated frame."""


def find_method(text: str) -> Method:
    """Return the method that a word of the command line names.

    Raises:
        InputError: There is no such method, or the folder of imported renders is missing.
    """
    plain, ending = split_ending(text)
    if ending:
        return _rendered_again(find_method(plain), ending)
    if text in METHODS:
        return METHODS[text]
    if text.startswith(REGISTERED):
        name = text.removeprefix(REGISTERED)
        return Method(name=name, registered=name)
    if text.startswith(IMPORTED):
        name, _, folder = text.removeprefix(IMPORTED).partition("=")
        if not name or not Path(folder).is_dir():
            raise InputError(
                f"Imported renders as import:NAME=FOLDER with FOLDER/SCENE/VIEWS/VIEW.png were "
                f"expected: {text} came."
            )
        return Method(name=name, renders=Path(folder))
    raise InputError(
        f"There is no method `{text}`: choose among {', '.join(METHODS)}, {REGISTERED}NAME for "
        f"any method registered with nerfstudio, or {IMPORTED}NAME=FOLDER for rendered test views."
    )


def _rendered_again(method: Method, ending: str) -> Method:
    """Return a method with an ending."""
    name = method.name + ending
    if method.renders is not None:
        raise InputError(f"Renders that were made elsewhere cannot be rendered again: {name} came.")
    if not ending.startswith(FILED):
        generator, mark, rule = ending.removeprefix(REFINED).removeprefix("=").partition(":")
        if mark and rule not in RULES:
            raise InputError(f"{' or '.join(RULES)} was expected behind the colon: {name} came.")
        return replace(method, name=name, refine=generator or DEFAULT_GENERATOR, fusion=rule)
    color = ending.removeprefix(FILED)
    if method.refine:
        raise InputError(f"An exported file holds no refined renders: {name} came.")
    if color not in COLORS or not method.is_ours:
        raise InputError(
            f"METHOD{FILED}{' or '.join(COLORS)} with a method of fvgen-splat was expected: "
            f"{name} came."
        )
    return replace(method, name=name, file=color)


def split_ending(text: str) -> tuple[str, str]:
    """Split a method's word before `+refine` or `+file=`; empty where there is neither."""
    plain, mark, color = text.rpartition(FILED)
    if mark:
        return plain, mark + color
    plain, mark, generator = text.rpartition(REFINED)
    return (plain, mark + generator) if mark and generator[:1] in {"", "="} else (text, "")


def parse_weights(words: Sequence[str]) -> dict[str, tuple[Path, int | None]]:
    """Return folder and number of steps by generator, of words like student=FOLDER@4.

    Raises:
        InputError: A word has another form, or its folder is not there.
    """
    found: dict[str, tuple[Path, int | None]] = {}
    for word in words:
        name, _, place = word.partition("=")
        folder, _, steps = place.partition("@")
        if not name or not Path(folder).is_dir() or not (steps or "1").isdigit():
            raise InputError(
                f"Weights as GENERATOR=FOLDER or GENERATOR=FOLDER@STEPS were expected: {word} came."
            )
        found[name] = (Path(folder).resolve(), int(steps) if steps else None)
    return found


def weight_overrides(
    method: Method, weights: Mapping[str, tuple[Path, int | None]]
) -> tuple[str, ...]:
    """Return the settings that give a method its generator's weights."""
    return _weight_words("pipeline.densify", method.generator, weights)


def refine_overrides(
    method: Method, weights: Mapping[str, tuple[Path, int | None]]
) -> tuple[str, ...]:
    """Return the settings with which a method's splat is refined; none where it is not."""
    if not method.refine:
        return ()
    words = [f"pipeline.refine.generator={method.refine}"]
    words += _weight_words("pipeline.refine", method.refine, weights)
    if method.fusion:
        words.append(f"pipeline.refine.fusion={method.fusion}")
    if FUSION in weights and method.fusion != "mean":
        words.append(f"pipeline.refine.fusion_weights={weights[FUSION][0]}")
    return tuple(words)


def again_words(method: Method, weights: Mapping[str, tuple[Path, int | None]]) -> tuple[str, ...]:
    """Return how `refine.py` is told to render a method's splat again; none where it is not."""
    if method.file:
        return ("--file", method.file)
    overrides = refine_overrides(method, weights)
    return ("--overrides", *overrides) if overrides else ()


def _weight_words(
    place: str, generator: str, weights: Mapping[str, tuple[Path, int | None]]
) -> tuple[str, ...]:
    if generator not in weights:
        return ()
    folder, steps = weights[generator]
    words = [f"{place}.weights={folder}"]
    return (*words, f"{place}.num_steps={steps}") if steps else tuple(words)


def replace_missing_lpips() -> None:
    """Keep stock splatfacto from fetching LPIPS's backbone at construction.

    Its value is only used by nerfstudio's own evaluation, which the benchmark does not call.
    """
    from fvgen_nerfstudio.perceptual import lpips_backbone

    if lpips_backbone().exists():
        return
    from torch import nn
    from torchmetrics.image import lpip

    class _Absent(nn.Module):
        def __init__(self, **_: object) -> None:
            super().__init__()

    lpip.LearnedPerceptualImagePatchSimilarity = _Absent
