"""The fused functions. Shapes: mu and rho are [*shape]; a key [2] gives one sample, [S, 2] gives S.

sigma = softplus(rho). mu_prior and std_prior are each a number, a 0-dim tensor on the CPU, or a tensor on mu's device
with one element or of a shape that broadcasts to mu's; they may require a gradient (empirical Bayes), but for a CPU's
beside parameters on a GPU. A tensor std_prior is never read by Python (that would make a GPU wait): a value <= 0 in it
makes log_prob NaN, while gradients may be finite. Both are None to leave the prior out: log_prob is then the sum of
log q(x). The dtype is one of float32, float64, float16 and bfloat16, and
priors may have another of them; log_prob is float32 for half types, else the parameters' type.

`family` says which density the prior has: None is a Gaussian's; "laplace" has location mu_prior and scale std_prior;
"scale_mixture" is a mixture of N(mu_prior, std_prior^2) and of N(mu_prior, (ratio std_prior)^2), with
family_parameters = (weight of the first, ratio), 0 < weight < 1 and 1e-9 <= ratio <= 1.

With `antithetic` each of k keys [k, 2] gives two samples, mu + sigma eps and then mu - sigma eps: S = 2 k.

The functions `foreach_*` take sequences of tensors, such as all weights of a network, and do in one call what their
namesakes do in one for each tensor.

All functions raise TypeError and ValueError for arguments of a wrong kind, and RuntimeError, from C++, for
tensors that do not fit together; the message names the argument and shows its value.
"""

import re
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor

import illia_ext._ops.autocast
import illia_ext._ops.autograd  # noqa: F401  (derivatives)
from illia_ext._checks import check_prior, shown
from illia_ext._ops import foreach
from illia_ext._ops.dispatch import is_traced
from illia_ext._ops.fake import op

__all__ = [
    "foreach_gaussian_kl_divergence",
    "foreach_gaussian_sample_and_log_prob",
    "gaussian_kl_divergence",
    "gaussian_log_prob",
    "gaussian_sample",
    "gaussian_sample_and_log_prob",
]


# What C++ refuses by a RuntimeError, and Python has another exception for.
_KINDS = (
    (ValueError, re.compile(r"(family|family_parameters|antithetic): expected")),
    (TypeError, re.compile(r"(tensor \d+: )?(mu|rho|key): expected (float32|int64|the dtype|a dtype)")),
    (ValueError, re.compile(r"(tensor \d+: )?(rho|key): expected (the |a )?shape")),
    (ValueError, re.compile(r"(mu|rho|mu_prior|std_prior): expected (at least one|one|as many) tensor")),
)


def _raise(error: RuntimeError, lists: dict[str, list[Any]] | None = None, **tensors: Any) -> NoReturn:
    """After an op has refused its arguments, which it checks all by itself, so that a good call is checked once."""
    named = {f"tensor {k}: {name}": value for name, values in (lists or {}).items() for k, value in enumerate(values)}
    for name, value in {**named, **tensors}.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {value!r}") from None
    for kind, message in _KINDS:
        if type(error) is RuntimeError and message.match(str(error)):
            raise kind(str(error)) from None
    raise error


def _prior(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.scalar_tensor(check_prior(name, value), dtype=torch.float64, device="cpu")


def _priors(name: str, value: Any) -> list[Tensor]:
    """One for all tensors, or one for each."""
    if (
        value is None
        or isinstance(value, (Tensor, Real))
        or not isinstance(value, Iterable)
        or getattr(value, "ndim", 1) == 0
    ):
        return [_prior(name, value)]
    priors = []
    for k, each in enumerate(value):
        try:
            priors.append(_prior(name, each))
        except (TypeError, ValueError) as error:
            raise type(error)(f"tensor {k}: {error}") from None
    return priors


def _keywords(
    mu_prior: Any, std_prior: Any, family: Any, are_many: bool = False, **others: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """mu_prior and std_prior, which are not read where the prior is flat; and the keywords that an op must be told."""
    names = family if are_many and isinstance(family, (list, tuple)) else [family]
    if not all(each is None or isinstance(each, str) for each in names):
        raise TypeError(f"family: expected {'names' if are_many else 'a name'} or None, got {shown(family)}")
    numbers = others.get("family_parameters")
    if numbers is not None and not (isinstance(numbers, (list, tuple)) and all(isinstance(x, Real) for x in numbers)):
        raise TypeError(f"family_parameters: expected a sequence of numbers, got {shown(numbers)}")
    if (mu_prior is None) != (std_prior is None):
        name, other = ("mu_prior", "std_prior") if mu_prior is None else ("std_prior", "mu_prior")
        raise TypeError(f"{name}: expected a number, got None; both are None to leave the prior out, but not {other}")
    if mu_prior is None and std_prior is None:
        if family is not None:
            raise ValueError(f"family: expected None without mu_prior and std_prior, got {family!r}")
        mu_prior, std_prior, family = 0.0, 1.0, "flat"
    others["family"] = family
    return (
        mu_prior,
        std_prior,
        {name: value for name, value in others.items() if value is not None and value is not False},
    )


def _pairs(key: Any, antithetic: bool) -> Any:
    """Each key twice, as the ops take those of antithetic samples."""
    if not isinstance(antithetic, bool):
        raise TypeError(f"antithetic: expected True or False, got {shown(antithetic)}")
    if not antithetic or not isinstance(key, Tensor):
        return key
    if key.dim() != 2:
        raise ValueError(f"antithetic: expected keys [k, 2], of which each gives two samples, got {list(key.shape)}")
    return torch.stack([key, key], 1).flatten(0, 1)


def _tensors(name: str, value: Any) -> list[Any]:
    if isinstance(value, Tensor) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected a sequence of tensors, got {value!r}")
    return list(value)


def gaussian_sample(
    mu: Tensor, rho: Tensor, key: Tensor, dtype: torch.dtype | None = None, *, antithetic: bool = False
) -> Tensor:
    """x = mu + softplus(rho) * eps, with eps drawn from the stream of `key`.

    Args:
        mu, rho: [*shape].
        key: [2] or [S, 2], int64 or uint64, on mu's device.
        dtype: of the sample: mu's, or float16 or bfloat16 beside float32 parameters. None is mu's, and under autocast
            autocast's for float32 parameters.
        antithetic: as above.

    Returns:
        [*shape] or [S, *shape], contiguous.

    Source: Blundell et al., "Weight uncertainty in neural networks" (2015); Kingma & Welling (2014).
    """
    key, keywords = _pairs(key, antithetic), {"antithetic": True} if antithetic else {}
    try:
        x: Tensor = op("gaussian_sample")(mu, rho, key, dtype=dtype, **keywords)
        return x
    except RuntimeError as error:
        _raise(error, mu=mu, rho=rho, key=key)


def gaussian_log_prob(
    x: Tensor,
    mu: Tensor,
    rho: Tensor,
    mu_prior: Tensor | float | None,
    std_prior: Tensor | float | None,
    *,
    family: str | None = None,
    family_parameters: Sequence[float] | None = None,
) -> Tensor:
    """Sum over all elements of log q(x) - log p(x), q = N(mu, softplus(rho)^2), p = N(mu_prior, std_prior^2).

    Args:
        x: [*shape], or [S, *shape] for S samples.
        mu, rho: [*shape].
        mu_prior, std_prior: numbers, or tensors with one element or broadcastable to [*shape]; or both None.
        family, family_parameters: of the prior, as above.

    Returns:
        Scalar, or [S]; in nats.
    """
    mu_prior, std_prior, keywords = _keywords(mu_prior, std_prior, family, family_parameters=family_parameters)
    mu_prior, std_prior = _prior("mu_prior", mu_prior), _prior("std_prior", std_prior)
    try:
        log_prob: Tensor = op("gaussian_log_prob")(x, mu, rho, mu_prior, std_prior, **keywords)
        return log_prob
    except RuntimeError as error:
        _raise(error, x=x, mu=mu, rho=rho)


def gaussian_sample_and_log_prob(
    mu: Tensor,
    rho: Tensor,
    mu_prior: Tensor | float | None,
    std_prior: Tensor | float | None,
    key: Tensor,
    dtype: torch.dtype | None = None,
    stick_the_landing: bool = False,
    *,
    family: str | None = None,
    family_parameters: Sequence[float] | None = None,
    antithetic: bool = False,
) -> tuple[Tensor, Tensor]:
    """`gaussian_sample` and the `gaussian_log_prob` of that sample, in one pass.

    Args:
        mu, rho, key, dtype, antithetic: as of `gaussian_sample`.
        mu_prior, std_prior, family, family_parameters: as of `gaussian_log_prob`.
        stick_the_landing: hold log q's own mu and rho fixed in the gradient, which drops the score term. Its mean is
            zero, and its variance rules where q is close to the posterior. The values stay the same; there are no
            second derivatives.

    Returns:
        x: [*shape] or [S, *shape], contiguous.
        log_prob: scalar or [S], in nats: sum of log q(x) - log p(x). Its mean over keys is the KL divergence.

    Source of stick_the_landing: Roeder, Wu & Duvenaud, "Sticking the landing: simple, lower-variance gradient
    estimators for variational inference" (2017).
    """
    mu_prior, std_prior, keywords = _keywords(
        mu_prior,
        std_prior,
        family,
        family_parameters=family_parameters,
        dtype=dtype,
        stick_the_landing=stick_the_landing,
        antithetic=antithetic,
    )
    mu_prior, std_prior = _prior("mu_prior", mu_prior), _prior("std_prior", std_prior)
    key = _pairs(key, antithetic)
    try:
        x, log_prob = op("gaussian_sample_and_log_prob")(mu, rho, mu_prior, std_prior, key, **keywords)
        return x, log_prob
    except RuntimeError as error:
        _raise(error, mu=mu, rho=rho, key=key)


def gaussian_kl_divergence(mu: Tensor, rho: Tensor, mu_prior: Tensor | float, std_prior: Tensor | float) -> Tensor:
    """KL(q || p), summed over all elements, in closed form.

    Returns:
        Scalar, in nats.
    """
    mu_prior, std_prior = _prior("mu_prior", mu_prior), _prior("std_prior", std_prior)
    try:
        kl_divergence: Tensor = op("gaussian_kl_divergence")(mu, rho, mu_prior, std_prior)
        return kl_divergence
    except RuntimeError as error:
        _raise(error, mu=mu, rho=rho)


def foreach_gaussian_sample_and_log_prob(
    mu: Sequence[Tensor],
    rho: Sequence[Tensor],
    mu_prior: Tensor | float | Sequence[Tensor | float] | None,
    std_prior: Tensor | float | Sequence[Tensor | float] | None,
    key: Tensor,
    dtype: torch.dtype | None = None,
    stick_the_landing: bool = False,
    *,
    family: str | Sequence[str | None] | None = None,
    family_parameters: Sequence[float] | None = None,
    antithetic: bool = False,
    is_repeatable: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """`gaussian_sample_and_log_prob` of many tensors, all of one dtype and on one device, in one pass.

    The tensors share the stream of `key`: each starts at the first Philox block that those before it left unused. So x
    and all gradients are those of `gaussian_sample_and_log_prob` for each tensor, bit for bit, with the key that
    `illia_ext.random.advance` moves on by these blocks: ceil(numel / 4) of each tensor before, ceil(numel / 2) for
    float64.

    Args:
        mu, rho: of each tensor [*shape], at least one.
        mu_prior, std_prior: as of `gaussian_log_prob`; one for all tensors, or a sequence with one for each.
        family: one for all priors, or a sequence with one for each.
        family_parameters: two numbers for each "scale_mixture" in family, in a row.
        key, dtype, stick_the_landing, antithetic: as of `gaussian_sample_and_log_prob`.
        is_repeatable: whether backward may run several times, which a compiled program, a transform of torch.func and
            forward mode allow in their own ways.

    Returns:
        x: of each tensor [*shape] or [S, *shape], contiguous.
        log_prob: scalar or [S], in nats: the sum over all tensors.
    """
    mu, rho = _tensors("mu", mu), _tensors("rho", rho)
    mu_prior, std_prior, keywords = _keywords(
        mu_prior,
        std_prior,
        family,
        are_many=True,
        family_parameters=family_parameters,
        dtype=dtype,
        stick_the_landing=stick_the_landing,
        antithetic=antithetic,
    )
    mu_prior, std_prior = _priors("mu_prior", mu_prior), _priors("std_prior", std_prior)
    if "family" in keywords:
        given = keywords["family"]
        keywords["family"] = [given] if isinstance(given, str) else [each or "normal" for each in given]
    key = _pairs(key, antithetic)
    try:
        if is_repeatable and torch.is_grad_enabled() and not is_traced():
            lists = [mu, rho, mu_prior, std_prior]
            tensors = [tensor for tensors in lists for tensor in tensors]
            *x, log_prob = foreach.RepeatableDraw.apply(lists, key, keywords, *tensors)
        else:
            x, log_prob = op("foreach_gaussian_sample_and_log_prob")(mu, rho, mu_prior, std_prior, key, **keywords)
        return x, log_prob
    except RuntimeError as error:
        _raise(error, {"mu": mu, "rho": rho}, key=key)


def foreach_gaussian_kl_divergence(
    mu: Sequence[Tensor],
    rho: Sequence[Tensor],
    mu_prior: Tensor | float | Sequence[Tensor | float],
    std_prior: Tensor | float | Sequence[Tensor | float],
) -> Tensor:
    """`gaussian_kl_divergence`, summed over many tensors; arguments as of `foreach_gaussian_sample_and_log_prob`.

    Returns:
        Scalar, in nats.
    """
    mu, rho = _tensors("mu", mu), _tensors("rho", rho)
    mu_prior, std_prior = _priors("mu_prior", mu_prior), _priors("std_prior", std_prior)
    try:
        kl_divergence: Tensor = op("foreach_gaussian_kl_divergence")(mu, rho, mu_prior, std_prior)
        return kl_divergence
    except RuntimeError as error:
        _raise(error, {"mu": mu, "rho": rho})
