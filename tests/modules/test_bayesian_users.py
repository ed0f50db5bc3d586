"""What users of language models, flows and trainers do with a BayesianModule."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from module_cases import KEYS, convert, inputs
from torch import Tensor, nn

from illia_ext import BayesianModule

pytestmark = pytest.mark.usefixtures("cpu")


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


def test_the_signature_is_the_wrapped_modules() -> None:
    """On the class too, where trainers look, and on copies; an argument named key is the module's."""
    bayesian = BayesianModule(Shown())
    for each in (bayesian, copy.deepcopy(bayesian), pickle.loads(pickle.dumps(bayesian))):
        names = list(inspect.signature(each.forward).parameters)
        assert names == ["input_ids", "labels", "key", "num_samples", "options"]
        assert list(inspect.signature(type(each).forward).parameters) == ["self", *names]
        assert type(each) is type(bayesian) and isinstance(each, BayesianModule)
    names = list(inspect.signature(BayesianModule(nn.Linear(4, 2)).forward).parameters)
    assert names == ["input", "num_samples", "key"]
    own = Doubling(nn.Linear(4, 2))
    assert list(inspect.signature(own.forward).parameters) == ["inputs", "options"]
    assert own(torch.ones(1, 4), num_samples=2)[0].shape == (2, 1, 2)
    assert type(BayesianModule(Builtin(4, 2))) is BayesianModule


def test_repr() -> None:
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


def test_lazy_outputs() -> None:
    """Refused of a call; inside a block, and by a transform, they compute with the sample, and reach rho."""
    bayesian = convert(Conditional(4, 2)).eval()
    y = torch.ones(6, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"with mu in place of the sample. Compute inside `with bnn.sampled\(\):`"):
        bayesian(inputs())
    expected = torch.stack([bayesian.sample_module(key)(inputs()).log_prob(y) for key in KEYS])
    with bayesian.sampled(KEYS[0]):
        log_prob = bayesian.module(inputs()).log_prob(y)
        log_prob.sum().backward()
    torch.testing.assert_close(log_prob, expected[0])
    assert all(parameter.grad.all() for parameter in bayesian.parameters())
    prediction = bayesian.predict(inputs(), key=KEYS, transform=lambda flow: flow.log_prob(y))
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


def test_generate_and_transform_of_a_language_model() -> None:
    torch.manual_seed(0)
    bayesian = convert(Language(), rho_init=0.0).eval()
    tokens, keys, texts = torch.tensor([[1, 2], [3, 4]]), KEYS[:3], []
    for key in keys:
        with bayesian.sampled(key):
            texts.append(bayesian.module.generate(tokens, 8))
        assert torch.equal(texts[-1], bayesian.sample_module(key).generate(tokens, 8))
    assert len({tuple(text.flatten().tolist()) for text in texts}) == 3
    prediction = bayesian.predict(tokens, key=keys, transform=lambda output: output.logits.softmax(-1))
    expected = torch.stack([bayesian.sample_module(key)(tokens).logits.softmax(-1) for key in keys])
    torch.testing.assert_close(prediction.mean, expected.mean(0))


def test_predict_averages_probabilities() -> None:
    """The softmax of the mean of logits is another number."""
    torch.manual_seed(0)
    bayesian = convert(nn.Linear(4, 3), rho_init=1.0).eval()
    ours = bayesian.predict(inputs(), key=KEYS, transform=lambda logits: logits.softmax(-1)).mean
    logits = bayesian.predict(inputs(), key=KEYS)
    torch.testing.assert_close(ours, logits.samples.softmax(-1).mean(0))
    assert (ours - logits.mean.softmax(-1)).abs().max() > 0.05
