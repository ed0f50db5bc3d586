"""Shapes of the multi-tensor ops: what tracing and torch.compile need to know of each, and what is refused."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from illia_ext._ops.fake import check, check_device, check_shape, contiguous, fake, key_samples, log_prob_dtype, refuse

__all__ = ["check_grad_x", "check_lists", "split_lists"]

_Tensors = Sequence[Tensor]


def split_lists(mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors) -> Iterator[_Tensors]:
    """mu, rho, mu_prior and std_prior of each tensor."""
    for k, pair in enumerate(zip(mu, rho)):
        yield *pair, *(priors[k if len(priors) > 1 else 0] for priors in (mu_prior, std_prior))


def _check_each(count: int, check_one: Callable[[int], None]) -> None:
    for k in range(count):
        try:
            check_one(k)
        except RuntimeError as error:
            raise RuntimeError(f"tensor {k}: {error}") from None


def check_lists(
    mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors, key: Tensor | None = None
) -> None:
    """What csrc/ops/foreach.h refuses; dtypes within a tensor's arguments are left to the kernel."""
    refuse(not mu, "mu: expected at least one tensor, got an empty list")
    refuse(len(rho) != len(mu), f"rho: expected as many tensors as mu, {len(mu)}, got {len(rho)}")
    for name, priors in (("mu_prior", mu_prior), ("std_prior", std_prior)):
        message = f"{name}: expected one tensor, or as many as mu, {len(mu)}, got {len(priors)}"
        refuse(len(priors) not in (1, len(mu)), message)
    split = list(split_lists(mu, rho, mu_prior, std_prior))

    def check_one(k: int) -> None:
        check({"mu": mu[k], "rho": rho[k]}, mu_prior=split[k][2], std_prior=split[k][3])
        refuse(mu[k].dtype != mu[0].dtype, f"mu: expected the dtype of tensor 0, {mu[0].dtype}, got {mu[k].dtype}")
        check_device("mu", mu[k], "tensor 0", mu[0])

    _check_each(len(mu), check_one)
    check({"mu": mu[0]}, key)


def check_grad_x(grad_x: Sequence[Tensor | None], rho: _Tensors, key: Tensor) -> None:
    message = f"grad_x: expected as many gradients as mu has tensors, {len(rho)}, got {len(grad_x)}"
    refuse(len(grad_x) != len(rho), message)

    def check_one(k: int) -> None:
        check({"rho": rho[k]}, grads={"grad_x": grad_x[k]})
        check_shape("grad_x", grad_x[k], [*key_samples(key), *rho[k].shape])

    _check_each(len(rho), check_one)


@fake("foreach_gaussian_sample_and_log_prob")
def _(
    mu: _Tensors,
    rho: _Tensors,
    mu_prior: _Tensors,
    std_prior: _Tensors,
    key: Tensor,
    *,
    dtype: Any = None,
    stick_the_landing: bool = False,
) -> tuple[list[Tensor], Tensor]:
    check_lists(mu, rho, mu_prior, std_prior, key)
    samples = key_samples(key)
    x = [contiguous(tensor, [*samples, *tensor.shape], dtype) for tensor in mu]
    return x, contiguous(mu[0], samples, log_prob_dtype(mu[0]))


@fake("foreach_gaussian_sample_and_log_prob_backward")
def _(
    grad_x: Sequence[Tensor | None],
    grad_log_prob: Tensor | None,
    mu: _Tensors,
    rho: _Tensors,
    mu_prior: _Tensors,
    std_prior: _Tensors,
    key: Tensor,
    *,
    stick_the_landing: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    check_lists(mu, rho, mu_prior, std_prior, key)
    check_grad_x(grad_x, rho, key)
    check({"mu": mu[0]}, grads={"grad_log_prob": grad_log_prob})
    check_shape("grad_log_prob", grad_log_prob, key_samples(key))
    return list(map(contiguous, mu)), list(map(contiguous, rho))


@fake("foreach_gaussian_kl_divergence")
def _(mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors) -> Tensor:
    check_lists(mu, rho, mu_prior, std_prior)
    return contiguous(mu[0], [], log_prob_dtype(mu[0]))


@fake("foreach_gaussian_kl_divergence_backward")
def _(
    grad: Tensor, mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors
) -> tuple[list[Tensor], list[Tensor]]:
    check_lists(mu, rho, mu_prior, std_prior)
    check({"mu": mu[0]}, grads={"grad": grad})
    check_shape("grad", grad, [])
    return list(map(contiguous, mu)), list(map(contiguous, rho))
