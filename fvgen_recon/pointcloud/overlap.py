"""Which input photos the others hardly show, so that their depth is a guess."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.types import PointCloud

_TRUSTED = 0.5
"""Confidence from which a depth counts as found."""
_LITTLE = 0.2
"""Share of a photo's pixels below which half of the depths that are trusted there were wrong by
more than a tenth (three photos of each of 28 scenes; above it a sixth and fewer)."""
_MOST_NAMED = 4


def found_share(cloud: PointCloud, num_views: int) -> Float[Tensor, "V"]:
    """Return the share of each view's points whose depth is trusted; NaN where it has no points."""
    own = cloud.view >= 0
    view, surely = cloud.view[own].long().cpu(), cloud.confidence[own].cpu() >= _TRUSTED
    total = torch.bincount(view, minlength=num_views)
    return torch.bincount(view[surely], minlength=num_views) / total


def describe_overlap(clouds: Sequence[PointCloud], names: Sequence[str], option: str = "") -> str:
    """Return a sentence on the input photos that the others hardly show; empty where none is so.

    Points that were not lifted from the photos say nothing about it. Of several clouds each photo
    counts by the one that finds most of it.

    Args:
        clouds: Point clouds that were estimated from the photos, at least one.
        names: Names of the photos.
        option: The option that chooses other photos, if there is one.
    """
    shares = torch.stack([found_share(cloud, len(names)) for cloud in clouds])
    share = shares.nan_to_num(-1.0).amax(dim=0).masked_fill(shares.isnan().all(dim=0), 1.0)
    few = [place for place in share.argsort().tolist() if share[place] < _LITTLE]
    if not few:
        return ""
    named = ", ".join(
        f"{names[place]} ({100 * float(share[place]):.0f} %)" for place in few[:_MOST_NAMED]
    )
    rest = f" and {len(few) - _MOST_NAMED} more" if len(few) > _MOST_NAMED else ""
    return (
        f"Little of {named}{rest} was found in the other input photos, and depths there are often "
        f"wrong: add photos that stand between them, or choose others{option and f' ({option})'}."
    )
