"""Priors of every shape for the tests: arguments of the ops, and what their values and gradients may be off by."""

import torch
from helpers import (
    UNIT_ROUNDOFF,
    arithmetic_dtype,
    function_roundoffs,
    make_key,
    make_keys,
    make_parameters,
    noise,
    sigma,
)
from torch import Tensor

# mu's shape, and those of mu_prior and std_prior; 1025 is one more than a chunk of the CPU kernels
SHAPES = [
    ((5, 13), (), (5, 13)),
    ((5, 13), (5, 1), (13,)),
    ((5, 13), (1, 13), (1, 1, 1)),
    ((5, 13), (1,), ()),
    ((), (1,), (1, 1)),
    ((1025,), (1025,), (1025,)),
    ((1025,), (), ()),
    ((3, 7, 131), (7, 1), (3, 1, 1)),
    ((2, 0), (2, 1), (2, 0)),
]


class PriorCase:
    """Arguments of every op, and what their gradients to the priors are in float64."""

    def __init__(
        self,
        shapes: tuple[tuple[int, ...], ...],
        dtype: torch.dtype,
        prior_dtype: torch.dtype,
        num_samples: int | None,
        device: torch.device,
    ) -> None:
        shape, mu_prior_shape, std_prior_shape = shapes
        self.mu, self.rho = make_parameters(shape, dtype, device)
        mu_prior = make_parameters(mu_prior_shape, prior_dtype, device, seed=1)[0]
        std_prior = torch.exp2(make_parameters(std_prior_shape, prior_dtype, device, seed=2)[0] * 2)
        self.priors = (mu_prior, std_prior)
        keys = make_keys(*[(42 + i, 7) for i in range(num_samples or 0)], device=device)
        self.key = make_key(42, device=device) if num_samples is None else keys
        self.accurate = arithmetic_dtype(dtype)
        self.grad_log_prob = make_parameters(self.key.shape[:-1], self.accurate, device, seed=3)[0]
        self.grad_x = make_parameters((*self.key.shape[:-1], *shape), dtype, device, seed=4)[0]

    def exact_priors(self) -> tuple[Tensor, Tensor]:
        """As the ops see them: one of several elements is rounded to the arithmetic type, and broadcast to mu."""
        one = all(prior.numel() == 1 for prior in self.priors)
        seen = [prior.double() if one else prior.to(self.accurate).double() for prior in self.priors]
        return tuple(p.reshape(()).expand_as(self.mu) if p.numel() == 1 else p.expand_as(self.mu) for p in seen)

    def drawn_x(self) -> Tensor:
        return self.mu.double() + sigma(self.rho) * noise(self.key, self.mu)

    def per_sample(self) -> Tensor:
        return self.grad_log_prob.double().reshape([*self.grad_log_prob.shape, *[1] * self.mu.dim()])

    def sum_samples(self, tensor: Tensor) -> Tensor:
        return tensor.sum(0) if self.key.dim() == 2 else tensor

    def assert_log_prob(self, ours: Tensor, terms: list[Tensor]) -> None:
        """As test_forward.py has it: 1e-6 (in float64 2^-29 of it) of the absolute summands, and their rounding."""
        terms = torch.stack([term.expand_as(terms[0]) for term in terms])
        start = terms.dim() - self.mu.dim()
        total, size = (t.flatten(start).sum(-1) if self.mu.dim() else t for t in (terms, terms.abs()))
        u = UNIT_ROUNDOFF[self.accurate] * (2 if self.accurate == torch.float64 else 1)
        assert ours.dtype == self.accurate
        assert ((ours.double() - total.sum(0)).abs() <= u * (1e-6 * 2**24 * size.sum(0) + total.sum(0).abs())).all()

    def assert_prior_grads(self, grads: tuple[Tensor, ...], x: Tensor, x_size: Tensor, spread: Tensor | float) -> None:
        """d/dmu_prior = -go z / std and d/dstd_prior = go (1 - z^2 - spread^2) / std, spread that of KL alone.

        In units of u = 2^-24 (2^-53): x errs by 8 of its terms' sizes, z by 3 more and as z^2 twice; each product by
        one, S samples by S additions; 32 lanes of 8 a tile by 8, and what follows is in double. float64 is compared
        with itself: twice. The result is then rounded to the prior's dtype.
        """
        mu_prior, std_prior = self.exact_priors()
        go = self.per_sample()
        z, size = (x - mu_prior) / std_prior, (x_size + mu_prior.abs()) / std_prior
        exact = (-go * z / std_prior, go * (1 - z**2 - spread**2) / std_prior)
        sizes = (go.abs() * size / std_prior, go.abs() * (1 + size**2 + spread**2) / std_prior)
        roundoffs = 3 * function_roundoffs(8, self.mu) + (self.key.shape[0] if self.key.dim() == 2 else 1) + 16
        u = UNIT_ROUNDOFF[self.accurate] * (2 if self.accurate == torch.float64 else 1)
        for grad, prior, expected, scale in zip(grads, self.priors, exact, sizes):
            if expected.dim() > self.mu.dim():
                expected, scale = expected.sum(0), scale.sum(0)
            shape = prior.shape if prior.numel() != 1 else ()
            expected, bound = expected.sum_to_size(shape), roundoffs * u * scale.sum_to_size(shape)
            bound = bound + 2 * UNIT_ROUNDOFF[prior.dtype] * expected.abs() + 2.0**-24  # that of float16 next to 0
            assert grad.dtype == prior.dtype and grad.shape == prior.shape and grad.device == prior.device
            assert ((grad.double().reshape(shape) - expected).abs() <= bound).all()
