"""The methods that the benchmark can train, and what stock nerfstudio needs to run offline."""

from dataclasses import dataclass

from fvgen_nerfstudio.perceptual import lpips_backbone


@dataclass(frozen=True)
class Method:
    """A method of the benchmark."""

    registered: str
    """nerfstudio's name for it."""
    generator: str = "none"
    """What fills the views, for methods of this project."""


METHODS = {
    "splatfacto": Method(registered="splatfacto"),
    "fvgen-splat-real": Method(registered="fvgen-splat"),
    "fvgen-splat-render": Method(registered="fvgen-splat", generator="render"),
    "fvgen-splat": Method(registered="fvgen-splat", generator="default"),
    "fvgen-splat-student": Method(registered="fvgen-splat", generator="student"),
    "fvgen-splat-teacher": Method(registered="fvgen-splat", generator="teacher"),
}


def replace_missing_lpips() -> None:
    """Keep stock splatfacto from fetching LPIPS's backbone at construction.

    Its value is only used by nerfstudio's own evaluation, which the benchmark does not call.
    """
    if lpips_backbone().exists():
        return
    from torch import nn
    from torchmetrics.image import lpip

    class _Absent(nn.Module):
        def __init__(self, **_: object) -> None:
            super().__init__()

    lpip.LearnedPerceptualImagePatchSimilarity = _Absent
