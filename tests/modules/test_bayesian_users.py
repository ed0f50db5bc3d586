"""What users of language models, flows, adapters and trainers do with a BayesianModule."""

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import make_keys
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from illia_ext import BayesianModule, elbo_loss

parametrize = pytest.mark.parametrize


def inputs() -> Tensor:
    return torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4).requires_grad_()


class Doubling(BayesianModule):
    """A forward of its own, which keeps its signature."""

    def forward(self, inputs: Tensor, **options: Any) -> tuple[Any, Tensor]:
        output, log_prob = super().forward(inputs, **options)
        return 2 * output, log_prob


class Shown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, key: int = 3, **options: Any) -> Tensor:
        return self.linear(input_ids)


class Builtin(nn.Linear):
    forward = torch.relu  # type: ignore[assignment]


def test_the_signature_is_the_wrapped_modules(cpu: object) -> None:
    """On the class too, where trainers look, and on copies; an argument named key is the module's."""
    bayesian = BayesianModule(Shown())
    copies = [bayesian, copy.deepcopy(bayesian), pickle.loads(pickle.dumps(bayesian))]
    for each in copies:
        names = list(inspect.signature(each.forward).parameters)
        assert names == ["input_ids", "labels", "key", "num_samples", "options"]
        assert list(inspect.signature(type(each).forward).parameters) == ["self", *names]
        assert type(each) is type(bayesian) and isinstance(each, BayesianModule)
    assert list(inspect.signature(BayesianModule(nn.Linear(4, 2)).forward).parameters) == [
        "input",
        "num_samples",
        "key",
    ]
    own = Doubling(nn.Linear(4, 2))
    assert list(inspect.signature(own.forward).parameters) == ["inputs", "options"]
    assert own(torch.ones(1, 4), num_samples=2)[0].shape == (2, 1, 2)
    assert type(BayesianModule(Builtin(4, 2))) is BayesianModule


def test_repr(cpu: object) -> None:
    text = repr(BayesianModule(nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 2))))
    assert "3 tensors of 20 weights are Gaussian, mu_prior=0, std_prior=1" in text
    learned = BayesianModule(nn.Linear(3, 2), lambda name, weight: weight, nn.Parameter(torch.ones(1)))
    assert "2 tensors of 8 weights are Gaussian, mu_prior: one for each weight, std_prior: learned" in repr(learned)


class Flow:
    """A lazy output: it computes with the module's weights when it is asked."""

    def __init__(self, mean: Callable[[Tensor], Tensor], context: Tensor) -> None:
        self.mean, self.context = mean, context

    def log_prob(self, x: Tensor) -> Tensor:
        return -(x - self.mean(self.context)).square().sum(-1)


class Conditional(nn.Linear):
    def forward(self, context: Tensor) -> Flow:  # type: ignore[override]
        return Flow(super().forward, context)


def test_lazy_outputs(cpu: object) -> None:
    """Refused of a call; inside a block, and by a transform, they compute with the sample, and reach rho."""
    torch.manual_seed(0)
    bayesian = BayesianModule(Conditional(4, 2).double(), rho_init=-1.0)
    y = torch.ones(6, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"with mu in place of the sample. Compute inside `with bnn.sampled\(\):`"):
        bayesian(inputs())
    keys = make_keys((1, 2), (3, 4), device="cpu")
    weights = [bayesian.sample_module(key) for key in keys]
    expected = torch.stack([-(y - nn.functional.linear(inputs(), w.weight, w.bias)).square().sum(-1) for w in weights])
    with bayesian.sampled(keys[0]):
        log_prob = bayesian.module(inputs()).log_prob(y)
        log_prob.sum().backward()
    torch.testing.assert_close(log_prob, expected[0])
    assert all(parameter.grad.all() for parameter in bayesian.parameters())
    prediction = bayesian.predict(inputs(), key=keys, transform=lambda flow: flow.log_prob(y))
    torch.testing.assert_close(prediction.samples, expected)
    torch.testing.assert_close(prediction.mean, expected.mean(0))


class Language(nn.Module):
    """A tiny language model with a cache object in its output, and `generate`."""

    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits, self.cache = logits, [logits]

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, tokens: Tensor) -> Any:
        return self.Output(self.head(self.embedding(tokens).cumsum(-2).tanh()))

    @torch.no_grad()
    def generate(self, tokens: Tensor, length: int) -> Tensor:
        for _ in range(length):
            tokens = torch.cat([tokens, self(tokens).logits[:, -1:].argmax(-1)], -1)
        return tokens


def test_generate_and_transform_of_a_language_model(cpu: object) -> None:
    torch.manual_seed(0)
    bayesian = BayesianModule(Language().double(), rho_init=0.0)
    tokens, keys = torch.tensor([[1, 2], [3, 4]]), make_keys((1, 2), (3, 4), (5, 6), device="cpu")
    texts = []
    for key in keys:
        with bayesian.sampled(key):
            texts.append(bayesian.module.generate(tokens, 8))
        assert torch.equal(texts[-1], bayesian.sample_module(key).generate(tokens, 8))
    assert len({tuple(text.flatten().tolist()) for text in texts}) == 3
    prediction = bayesian.predict(tokens, key=keys, transform=lambda output: output.logits.softmax(-1))
    expected = torch.stack([bayesian.sample_module(key)(tokens).logits.softmax(-1) for key in keys])
    torch.testing.assert_close(prediction.mean, expected.mean(0))


def test_predict_averages_probabilities(cpu: object) -> None:
    """The softmax of the mean of logits is another number."""
    torch.manual_seed(0)
    bayesian = BayesianModule(nn.Linear(4, 3).double(), rho_init=1.0)
    keys = make_keys(*((i, 0) for i in range(20)), device="cpu")
    ours = bayesian.predict(inputs(), key=keys, transform=lambda logits: logits.softmax(-1)).mean
    logits = bayesian.predict(inputs(), key=keys)
    torch.testing.assert_close(ours, logits.samples.softmax(-1).mean(0))
    assert (ours - logits.mean.softmax(-1)).abs().max() > 0.05
    with pytest.raises(TypeError, match="transform: expected a function of the module's output, got 3"):
        bayesian.predict(inputs(), transform=3)


class Adapted(nn.Linear):
    """A frozen layer with a low-rank adapter."""

    def __init__(self) -> None:
        super().__init__(32, 32)
        self.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, 32) / 6), nn.Parameter(torch.zeros(32, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + inputs @ self.a.T @ self.b.T


@parametrize("use_reentrant", [False, True])
def test_twenty_steps_of_adapters_under_activation_checkpointing(use_reentrant: bool, cpu: object) -> None:
    """In place, without a copy of the base: the steps are those without checkpoints."""
    results = []
    data = torch.randn(16, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for run in (lambda layer, hidden: layer(hidden), partial(checkpoint, use_reentrant=use_reentrant)):
        torch.manual_seed(0)
        network = nn.ModuleList(Adapted() for _ in range(3)).double()
        base = [layer.weight for layer in network]
        bayesian = BayesianModule(network, copy=False, std_prior=0.3)
        assert len(list(bayesian.rho.parameters())) == 6
        optimizer = torch.optim.Adam(bayesian.param_groups(), lr=1e-2)
        for _ in range(20):
            with bayesian.sampled() as log_prob:
                hidden = data.clone().requires_grad_()
                for layer in bayesian.module:
                    hidden = run(layer, hidden).tanh()
                elbo_loss((hidden - data).square().mean(), log_prob, 1000).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(layer.weight is weight for layer, weight in zip(network, base))
        results.append([parameter.detach() for parameter in bayesian.parameters()])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)  # Adam divides by the root of small squares


class Caching(nn.Linear):
    """Keeps what it makes of its weight for later calls in evaluation, as LeViT keeps its attention biases."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.cache: dict[str, Tensor] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            return inputs @ self.weight
        if "bias" not in self.cache:
            self.cache["bias"] = self.weight[:1]
        return inputs + self.cache["bias"]


class Remembering(nn.Module):
    """Without weights of its own: it keeps what it makes of those inside, in an attribute or a buffer."""

    def __init__(self, in_buffer: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        if in_buffer:
            self.register_buffer("kept", None)
        else:
            self.kept = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.linear.weight.T
        return inputs @ self.kept


@parametrize("in_buffer", [False, True])
def test_a_cache_of_a_part_of_another(in_buffer: bool, cpu: object) -> None:
    with pytest.warns(UserWarning, match=r"module\.kept: the module keeps a tensor of this call"):
        BayesianModule(Remembering(in_buffer))(torch.ones(1, 4))


@parametrize("by_block", [False, True])
def test_caches_are_named_once(by_block: bool, cpu: object) -> None:
    bayesian = BayesianModule(nn.Sequential(Caching(), nn.Linear(4, 2)))

    def call() -> None:
        if by_block:
            with bayesian.sampled():
                bayesian.module(torch.ones(1, 4))
        else:
            bayesian(torch.ones(1, 4))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    bayesian.eval()
    with pytest.warns(
        UserWarning, match=r"module\.0\.cache: the module keeps a tensor of this call. .* clear it before"
    ):
        call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()


def test_two_distributions_over_one_module(cpu: object) -> None:
    """Without copies they share the module's turns: none takes the other's sample for mu."""
    network = nn.Linear(4, 4).double()
    first, second = (BayesianModule(network, copy=False) for _ in range(2))
    with pytest.raises(RuntimeError, match=r"bnn\(x\): refused while `sampled\(\)`"), first.sampled():
        second(inputs())
    second(inputs())
    part = BayesianModule(nn.Sequential(network), copy=False)  # has turns of its own
    for use in (part.kl_divergence, part.state_dict, lambda: part(inputs())):
        with pytest.raises(RuntimeError, match="another BayesianModule over the same weights"), first.sampled():
            use()
        with torch.no_grad(), pytest.raises(RuntimeError, match="another BayesianModule over"), first.sampled():
            use()
        use()
