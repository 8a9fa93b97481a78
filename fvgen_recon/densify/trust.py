"""A calibrated confidence: the agreement with the photo that the evidence lets one expect.

A logistic model on `evidence.EVIDENCE`, fitted on training scenes against real photos at the poses
of generated frames (scripts/calibrate_confidence.py). A confidence of 0.7 claims that
exp(-d^2 / 2 tolerance^2) of the colour difference d to the photo is 0.7 in the mean.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.densify.evidence import EVIDENCE
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.io.file import write_json

SHIPPED = Path(__file__).resolve().parent / "trust.json"
"""Models that the package brings, by generator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustModel:
    """Coefficients of the logistic model."""

    names: tuple[str, ...]
    """Kinds of evidence that it uses."""
    weights: tuple[float, ...]
    """One a kind of evidence."""
    bias: float
    tolerance: float
    """Colour difference at which agreement falls to exp(-1/2), of evidence and target alike."""
    # Not in the text that a bank's hash is made of: they change no confidence.
    weights_hash: str | None = field(default=None, repr=False)
    """Of the generator whose frames it was fitted to; none for generators without weights."""
    origin: str = field(default="", repr=False)
    """Command, commit and date of the fit."""

    def __post_init__(self) -> None:
        """Check that the names are known and each has a weight."""
        unknown = [n for n in self.names if n not in EVIDENCE]
        if unknown or len(self.names) != len(self.weights):
            raise WeightsError(
                f"A weight for each of some of {', '.join(EVIDENCE)} was expected: "
                f"{', '.join(self.names)} with {len(self.weights)} weights came."
            )

    def confidence(self, evidence: Float[Tensor, "E *B"]) -> Float[Tensor, "*B"]:
        """Return the expected agreement with the photo."""
        index = [EVIDENCE.index(name) for name in self.names]
        weights = torch.tensor(self.weights, dtype=evidence.dtype, device=evidence.device)
        logit = (evidence[index] * weights.view(-1, *[1] * (evidence.dim() - 1))).sum(0)
        return torch.sigmoid(logit + self.bias)


def fit_trust(
    evidence: Float[Tensor, "E N"],
    target: Float[Tensor, "N"],
    *,
    names: Sequence[str],
    tolerance: float,
    penalty: float = 1e-4,
) -> TrustModel:
    """Fit the model to pixels whose agreement with the photo is known.

    Minimises the cross-entropy with soft targets, which is proper: the minimum is the mean. A
    small ridge keeps kinds of evidence that say the same thing from cancelling each other.

    Raises:
        InputError: There are no pixels.
    """
    if target.numel() == 0:
        raise InputError("Pixels with a known photo were expected to fit confidence to: none came.")
    rows = evidence[[EVIDENCE.index(n) for n in names]].double()
    x = torch.cat([rows, torch.ones_like(rows[:1])])
    y = target.double()
    w = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    ridge = penalty * torch.ones_like(w)
    ridge[-1] = 0
    for _ in range(50):  # Newton's method; the loss is convex.
        p = torch.sigmoid(w @ x)
        gradient = x @ (p - y) / len(y) + ridge * w
        hessian = (x * (p * (1 - p))) @ x.T / len(y) + torch.diag(ridge + 1e-9)
        step = torch.linalg.solve(hessian, gradient)
        w = w - step * min(1.0, 4.0 / float(step.abs().amax().clamp_min(1e-9)))
        if float(step.abs().amax()) < 1e-8:
            break
    return TrustModel(
        names=tuple(names),
        weights=tuple(round(float(v), 5) for v in w[:-1]),
        bias=round(float(w[-1]), 5),
        tolerance=tolerance,
    )


def trust_key(generator: str, num_samples: int) -> str:
    """Name of the model for a generator, with or without several samples of a clip."""
    return f"{generator}/{'several' if num_samples > 1 else 'one'}"


def save_trust(path: Path, models: Mapping[str, TrustModel]) -> None:
    """Write models by `trust_key` as JSON."""
    write_json(path, {"models": {key: asdict(model) for key, model in sorted(models.items())}})


def read_trust(path: Path) -> dict[str, TrustModel]:
    """Read the models of `save_trust`, or those of a file with one origin for all of them.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text())
        shared = content.get("origin", {})
        return {
            key: TrustModel(
                names=tuple(m["names"]),
                weights=tuple(float(w) for w in m["weights"]),
                bias=float(m["bias"]),
                tolerance=float(m["tolerance"]),
                weights_hash=m.get("weights_hash", shared.get(f"weights of {key.split('/')[0]}")),
                origin=m.get("origin", shared.get("command", "")),
            )
            for key, m in content["models"].items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"No confidence models could be read from {path}: {error}.") from error


def find_trust(generator: str, num_samples: int, path: Path | None = None) -> TrustModel:
    """Return the model of a generator.

    Raises:
        InputError: There is none for this generator.
    """
    models = read_trust(path or SHIPPED)
    key = trust_key(generator, num_samples)
    if key not in models:
        raise InputError(
            f"There is no calibrated confidence for `{key}`: choose one of {', '.join(models)}, "
            f"use levels, or fit one with scripts/calibrate_confidence.py."
        )
    return models[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """Claimed against measured agreement, in bins of the claim."""

    claimed: tuple[float, ...]
    measured: tuple[float, ...]
    error: tuple[float, ...]
    """Root mean square colour difference to the photo."""
    share: tuple[float, ...]
    """Of all pixels."""
    calibration_error: float
    """Mean |claimed - measured|, weighted by share."""
    rank: float
    """Spearman correlation of the claim with the measured agreement."""


def measure_reliability(
    claimed: Float[Tensor, "N"], error: Float[Tensor, "N"], tolerance: float, num_bins: int = 10
) -> Reliability:
    """Compare claims with what came true.

    Args:
        claimed: Confidence of each pixel.
        error: Its root mean square colour difference to the photo.
        tolerance: Of the agreement.
        num_bins: Bins of equal width; empty ones are left out.
    """
    measured = torch.exp(-error.double().square() / (2 * tolerance**2))
    index = (claimed * num_bins).long().clamp(0, num_bins - 1)
    count = torch.bincount(index, minlength=num_bins).double()
    filled = count > 0

    def mean(value: Tensor) -> Tensor:
        total = torch.bincount(index, weights=value.double(), minlength=num_bins)
        return (total / count)[filled]

    share = (count / count.sum())[filled]
    said, came = mean(claimed), mean(measured)
    return Reliability(
        claimed=tuple(said.tolist()),
        measured=tuple(came.tolist()),
        error=tuple(mean(error.square()).sqrt().tolist()),
        share=tuple(share.tolist()),
        calibration_error=float(((said - came).abs() * share).sum()),
        rank=_spearman(claimed, measured),
    )


def _spearman(first: Tensor, second: Tensor) -> float:
    ranks = [v.argsort().argsort().double() for v in (first, second)]
    ranks = [r - r.mean() for r in ranks]
    return float(F.cosine_similarity(ranks[0], ranks[1], dim=0))
