"""How good predictions are that are mixtures: of one distribution for each sample of the weights."""

import math

import torch
from sklearn.metrics import (  # type: ignore[import-untyped]
    accuracy_score,
    log_loss,
    roc_auc_score,
    root_mean_squared_error,
)
from torch import Tensor
from torch.special import ndtr

from illia_ext import mutual_information, predictive_entropy

__all__ = ["BINS", "LEVELS", "classification", "coverage", "regression", "reliability", "separation"]

BINS = 10  # of confidence, equally wide
LEVELS = torch.linspace(0.05, 0.95, 19)  # nominal coverages of predictive intervals


def reliability(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of cases, mean confidence and accuracy in the bins of confidence that are not empty.

    Args:
        probabilities: [cases, classes].
        labels: [cases].
    """
    confidence, predictions = probabilities.max(dim=-1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    count = torch.bincount(bins, minlength=BINS)
    correct = (predictions == labels).to(confidence.dtype)
    sums = torch.stack([torch.bincount(bins, part, minlength=BINS) for part in (confidence, correct)])
    filled = count > 0
    mean_confidence, accuracy = sums[:, filled] / count[filled]
    return count[filled], mean_confidence, accuracy


def classification(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, negative log likelihood and expected calibration error of logits [S, cases, classes]."""
    probabilities = logits.double().softmax(dim=-1).mean(dim=0)
    count, confidence, accuracy = reliability(probabilities, labels)
    calibration_error = (count * (confidence - accuracy).abs()).sum() / count.sum()
    return {
        "accuracy, %": 100 * accuracy_score(labels, probabilities.argmax(dim=-1)),
        "nll, nats": log_loss(labels, probabilities, labels=range(logits.shape[-1])),
        "calibration error, %": 100 * float(calibration_error),
    }


def separation(logits: Tensor, foreign_logits: Tensor) -> float:
    """How well doubt tells foreign inputs from known ones: area under the ROC curve (AUROC), 0.5 if not at all.

    Doubt is the mutual information of several samples [S, cases, classes], and the entropy of a single one.
    """
    doubt = mutual_information if len(logits) > 1 else predictive_entropy
    scores = torch.cat([doubt(logits), doubt(foreign_logits)])
    return float(roc_auc_score([0] * logits.shape[1] + [1] * foreign_logits.shape[1], scores))


def coverage(means: Tensor, noise: Tensor, targets: Tensor) -> Tensor:
    """Share of targets in the central predictive interval of each of LEVELS: [levels].

    A target lies in the interval of level p where the predictive distribution function F has |2 F(target) - 1| <= p,
    so no quantile of the mixture is needed.
    """
    level = (2 * ndtr((targets - means) / noise).mean(dim=0) - 1).abs()  # [cases]
    return (level <= LEVELS[:, None]).float().mean(dim=-1)


def regression(means: Tensor, noise: Tensor, targets: Tensor) -> dict[str, float]:
    """Error, negative log likelihood and mean |coverage - level| over LEVELS, for means [S, cases] and their noise."""
    mixture = torch.distributions.Normal(means, noise).log_prob(targets).logsumexp(dim=0) - math.log(len(means))
    return {
        "rms error": root_mean_squared_error(targets, means.mean(dim=0)),
        "nll, nats": -float(mixture.mean()),
        "calibration error, %": 100 * float((coverage(means, noise, targets) - LEVELS).abs().mean()),
    }
