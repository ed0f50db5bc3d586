"""What to minimise, and how unsure a prediction is."""

import math

import torch
from torch import Tensor

from illia_ext._checks import check_finite, check_positive, shown
from illia_ext._ops.dispatch import dispatch_modes, is_traced

__all__ = ["elbo_loss", "mutual_information", "predictive_entropy"]


def elbo_loss(nll: Tensor, log_prob: Tensor, num_data: float, kl_weight: float = 1.0) -> Tensor:
    """Minus the evidence lower bound (ELBO) per data point, to be minimised: nll + kl_weight * log_prob / num_data.

    The negative ELBO of a whole data set is its summed negative log likelihood + KL(q || p). nll is a mean over data
    points, log_prob a sum over weights, so divided by num_data it has this form, and its expectation does not depend on
    the size of a batch.

        output, log_prob = bnn(inputs)
        elbo_loss(cross_entropy(output, labels), log_prob, num_data=60000).backward()

        output, log_prob = bnn(inputs, num_samples=8)  # [8, N, C] and [8]
        nll = cross_entropy(output.flatten(0, 1), labels.repeat(8))
        elbo_loss(nll, log_prob, num_data=60000).backward()

    Watch nll and log_prob / num_data. While the second one falls, sigma is still on its way from where it started, and
    the uncertainty of predictions is not the posterior's: train on, at a larger rate. When it has levelled off:

    - nll of chance (log C for C classes): sigma grew faster than mu learned, or the prior is so narrow that forgetting
      the data is the better bound. Take a smaller learning rate first, with a kl_weight that grows from 0 to 1 over the
      first epochs; a wider prior if std_prior is 0.1 or less; rho_init=relative_rho(0.1) if trained weights are small.
    - nll far above the deterministic network's: underfitting. Use fewer weights or more data, several samples a step, a
      trained network as the prior's mean, with a narrow prior (mu_prior=lambda name, weight: weight, std_prior=0.1), or
      a kl_weight of 0.1 to 0.3, which tempers the posterior. docs/defaults.md and docs/uci_regression.md have figures.

    Args:
        nll: negative log likelihood, the mean over the batch: a scalar, or [S] for S samples of the weights.
        log_prob: sum over all weights of log q - log p, of the same samples: a scalar or [S]; or the KL divergence.
            If nll and log_prob are swapped, and both are scalars, no error is raised.
        num_data: how many data points the whole training set has, not the batch: what nll is a mean over, such as the
            tokens with a label of a language model.
        kl_weight: of the second term: 1 for the bound, less for a warm-up or a tempered posterior. Schedules:
            min(1, step / 1000), a linear warm-up; 0.1, a cold posterior; M * 2**-i / (1 - 2**-M) for batch i = 1, ...,
            M of an epoch, by which Blundell et al. give the first batches most of the term (they sum to M, as M ones).

    Raises:
        TypeError, ValueError: an argument of a wrong kind, shape or range, or a log_prob that is NaN. Values on a GPU
            are not looked at, nor in a compiled program.

    Returns:
        Scalar; samples are averaged.

    Source: Graves, "Practical variational inference for neural networks" (2011); Blundell et al., "Weight uncertainty
    in neural networks" (2015).
    """
    for name, value in (("nll", nll), ("log_prob", log_prob)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {shown(value)}")
        if value.dim() > 1:
            message = "expected a scalar or [num_samples], as a mean over the batch"
            raise ValueError(f"{name}: {message}, got shape {list(value.shape)}")
    if nll.dim() == log_prob.dim() == 1 and nll.shape != log_prob.shape:
        message = f"expected the samples of log_prob, {list(log_prob.shape)}"
        raise ValueError(f"nll: {message}, got shape {list(nll.shape)}")
    for name, value in (("nll", nll), ("log_prob", log_prob)):
        if value.numel() == 0:
            raise ValueError(f"{name}: expected at least one sample, got none")
    if _has_values(log_prob) and any(map(math.isnan, log_prob.reshape(-1).tolist())):
        raise ValueError(
            "log_prob: expected numbers, got nan: a weight is nan, or a learned std_prior has become negative, which "
            "illia_ext.Positive prevents"
        )
    check_positive("num_data", num_data)
    if not check_finite("kl_weight", kl_weight) >= 0:
        raise ValueError(f"kl_weight: expected a non-negative number, got {kl_weight}")
    nll, log_prob = (value.mean() if value.dim() else value for value in (nll, log_prob))
    return torch.add(nll, log_prob, alpha=kl_weight / num_data)


def _has_values(tensor: Tensor) -> bool:
    """Whether a check may look at them: on a GPU it would wait, and what is traced or transformed has none."""
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not is_traced() and not dispatch_modes()


def _log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample, [S, ..., classes], and of their mixture, [..., classes]; half types in float32."""
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"logits: expected a tensor, got {shown(logits)}; of a prediction, take the samples: "
            "bnn.predict(inputs).samples"
        )
    if not logits.is_floating_point():
        raise TypeError(f"logits: expected a floating dtype, got {logits.dtype}")
    if logits.dim() < 3 or 0 in (logits.shape[0], logits.shape[-1]):
        raise ValueError(
            f"logits: expected shape [S, N, C], samples of the weights first, got {list(logits.shape)}; write "
            "[S, 1, C] for one input, and take samples, not their mean: bnn.predict(inputs).samples"
        )
    if logits.numel() and logits.shape[-1] > 1 and _has_values(logits):
        with torch.no_grad():
            are_probabilities = (logits >= 0).all() and ((logits.sum(-1, dtype=torch.float64) - 1).abs() < 1e-2).all()
        if are_probabilities:
            raise ValueError("logits: expected logits, got probabilities (all rows sum to 1); pass their logarithms")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    # finite, so that a class of probability 0 adds 0, with a gradient of 0
    each = logits.log_softmax(-1, dtype=dtype).clamp(min=torch.finfo(dtype).min)
    return each, each.logsumexp(0) - math.log(len(logits))


def predictive_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean of the samples' class probabilities: all that a prediction is unsure of.

    Args:
        logits: [S, N, ..., C] for S samples of the weights, N inputs and C classes, as `bnn.predict(inputs).samples`
            gives them: logits or log-probabilities. Probabilities are refused, on a CPU.

    Returns:
        [N, ...], in nats, from 0 to log(C).

    Source: Gal, "Uncertainty in deep learning" (2016).
    """
    _, mixture = _log_probabilities(logits)
    return -(mixture.exp() * mixture).sum(-1)


def mutual_information(logits: Tensor) -> Tensor:
    """Of the class and the weights: the part of `predictive_entropy` that more data could take away.

    Predictive entropy less the samples' mean entropy, computed as the mean of the samples' KL divergences to their
    mixture: small numbers stay exact, which that difference of large ones would lose.

    Args:
        logits: as of `predictive_entropy`.

    Returns:
        [N, ...], in nats, from 0 to log(min(S, C)).

    Source: Houlsby et al., "Bayesian active learning for classification and preference learning" (2011), BALD.
    """
    each, mixture = _log_probabilities(logits)
    ratio = each - mixture
    # the second term sums to 0: with it each summand is of the square of the ratio, not a difference of such sums
    return (each.exp() * ratio - mixture.exp() * ratio.expm1()).sum(-1).mean(0)
