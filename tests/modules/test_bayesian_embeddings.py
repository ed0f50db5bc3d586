"""Embeddings: sparse gradients, which mu and rho get as dense ones, and the row of padding_idx, which is no weight."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key, same_bits
from module_cases import KEY, KEYS, assert_close, convert, results_of
from torch import Tensor, nn

from illia_ext import BayesianModule, GaussianDistribution, functional

parametrize = pytest.mark.parametrize
INDICES = torch.tensor([[0, 1, 3], [3, 3, 2]], device=DEVICE)

EMBEDDINGS: dict[str, Callable[..., nn.Module]] = {
    "Embedding": nn.Embedding,
    "EmbeddingBag": lambda *args, **kwargs: nn.EmbeddingBag(*args, mode="sum", **kwargs),
}


def make(embedding: str, **arguments: Any) -> BayesianModule:
    torch.manual_seed(0)
    options = {name: arguments.pop(name) for name in ("sparse", "padding_idx") if name in arguments}
    return convert(EMBEDDINGS[embedding](6, 4, **options), **arguments)


@parametrize("name", ["sample", "sample_and_log_prob"])
def test_sparse_gradients_of_a_distribution(name: str) -> None:
    distribution = GaussianDistribution((5, 3), device=DEVICE)
    gradients = []
    for sparse in (False, True):
        drawn = getattr(distribution, name)(key=KEY)
        x, log_prob = drawn if name == "sample_and_log_prob" else (drawn, distribution.mu.sum())
        loss = nn.functional.embedding(INDICES, x, sparse=sparse).square().sum() + log_prob
        gradients.append(torch.autograd.grad(loss, [distribution.mu, distribution.rho]))
    assert all(map(same_bits, *gradients))


@parametrize("chunk_size", [1, 3])
@parametrize("key", [KEY, KEYS[:3], KEYS[:1]], ids=["one", "three", "one of several"])
@parametrize("padding_idx", [None, 0])
@parametrize("embedding", EMBEDDINGS)
def test_sparse_gradients(embedding: str, padding_idx: int | None, key: Tensor, chunk_size: int) -> None:
    """Dense ones, those of an embedding that is not sparse."""
    results = []
    for sparse in (False, True):
        bayesian = make(embedding, padding_idx=padding_idx, sparse=sparse, chunk_size=chunk_size)
        results.append(results_of(bayesian, bayesian, INDICES, key=key))
    assert all(tensor.layout == torch.strided for tensor in results[1])
    assert_close(*results)


@parametrize("chunk_size", [1, 3])
@parametrize("padding_idx", [0, 3, -1])
@parametrize("embedding", EMBEDDINGS)
def test_padding(embedding: str, padding_idx: int, chunk_size: int) -> None:
    """The row stays zero, is drawn by nobody, counts nowhere, and neither mu nor rho gets a gradient there."""
    bayesian = make(embedding, padding_idx=padding_idx, chunk_size=chunk_size)
    row, others = padding_idx % 6, [i for i in range(6) if i != padding_idx % 6]
    assert bayesian.num_params() == 20
    for key in (KEY, KEYS[:3]):
        bayesian.zero_grad()
        output, log_prob = bayesian(torch.arange(6, device=DEVICE)[:, None], key=key)
        drawn = output if embedding == "EmbeddingBag" else output[..., 0, :]
        assert not drawn[..., row, :].any() and drawn[..., others, :].all()
        (output.square().sum() + log_prob.sum() + bayesian.kl_divergence()).backward()
        for parameter in (bayesian.module.weight, bayesian.rho.weight):
            assert not parameter.grad[row].any() and parameter.grad[others].all()
    assert not bayesian.sample_module(KEY).weight[row].any()


@parametrize("prior", ["numbers", "of each weight", "of each column", "of one row", "learned"])
def test_padding_and_priors(prior: str) -> None:
    """The same densities as of the five rows alone."""
    torch.manual_seed(1)
    shape = {"of each weight": (6, 4), "of each column": (4,), "of one row": (1, 4), "learned": (6, 4)}.get(prior, ())
    tensors = [torch.rand(shape, dtype=torch.float64, device=DEVICE) + 0.5 for _ in range(2)]
    if prior == "learned":
        tensors = [nn.Parameter(tensor) for tensor in tensors]
    given = [tensor.item() for tensor in tensors] if prior == "numbers" else [lambda *_, t=t: t for t in tensors]
    bayesian = make("Embedding", padding_idx=2, mu_prior=given[0], std_prior=given[1])
    mu, rho = bayesian.module.weight.detach(), bayesian.rho.weight.detach()
    parts = [slice(0, 2), slice(3, 6)]
    priors = [tensor.detach().expand(6, 4) for tensor in tensors]
    expected = sum(functional.gaussian_kl_divergence(mu[p], rho[p], *(t[p] for t in priors)) for p in parts)
    torch.testing.assert_close(bayesian.kl_divergence(), expected, rtol=1e-12, atol=0)
    weight = bayesian.sample_module(KEY).weight
    expected = sum(functional.gaussian_log_prob(weight[p], mu[p], rho[p], *(t[p] for t in priors)) for p in parts)
    torch.testing.assert_close(bayesian(INDICES, key=KEY)[1], expected, rtol=1e-10, atol=1e-10)
    if prior == "learned":
        bayesian.kl_divergence().backward()
        assert not any(tensor.grad[2].any() for tensor in tensors) and all(tensor.grad[0].all() for tensor in tensors)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 4, padding_idx=1), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, indices: Tensor) -> Tensor:
        return self.head(self.embedding(indices))


def test_padding_of_a_tied_weight() -> None:
    """The head's use of the row gives mu a gradient there, as in the plain network; rho gets none."""
    torch.manual_seed(0)
    network = Tied().to(DEVICE).double()
    bayesian = BayesianModule(network, rho_init=-30.0)
    grads = []
    for call in (lambda: bayesian(INDICES, key=KEY)[0], lambda: network(INDICES)):
        (call() + 1).square().sum().backward()
    grads = [bayesian.module.embedding.weight.grad[1], network.embedding.weight.grad[1]]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)  # sigma is 1e-13
    assert grads[0].any() and not bayesian.rho.embedding.weight.grad[1].any()


def test_an_embedding_of_padding_alone() -> None:
    bayesian = BayesianModule(nn.Embedding(1, 4, padding_idx=0, device=DEVICE))
    output, log_prob = bayesian(INDICES[:1, :1], num_samples=2)
    assert bayesian.num_params() == 0 and not output.any() and not log_prob.any()


def test_a_frozen_row_is_that_of_mu() -> None:
    bayesian = make("Embedding", padding_idx=0)
    bayesian.freeze(make_key(1))
    assert same_bits(bayesian(INDICES)[0], bayesian.sample_module()(INDICES))
