"""replace_distributions: what is not illia's distribution is left alone, and what cannot be replaced is refused."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from illia_like import GaussianDistribution, IlliaModule
from torch import Tensor, nn
from torch.nn.utils import parametrize as parametrizations

import illia_ext
from illia_ext import replace_distributions

parametrize = pytest.mark.parametrize


class Ours(illia_ext.DistributionModule):
    """Of a user, beside our GaussianDistribution."""

    sample = GaussianDistribution.sample
    log_prob = GaussianDistribution.log_prob
    num_params = GaussianDistribution.num_params

    def __init__(self) -> None:
        super().__init__()
        vars(self).update(vars(GaussianDistribution((3, 2))))


class Variational(nn.Module):
    """Of somebody else, with illia's names for its tensors."""

    mu_prior = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.rho = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    @property
    def std_prior(self) -> float:
        raise NotImplementedError

    def sample(self) -> Tensor:
        return self.mu


class Categorical(nn.Module):
    """With illia's names for its methods."""

    log_prob = num_params = sample = nn.Module.extra_repr


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_others_are_left_alone() -> None:
    scripted = torch.jit.script(illia_ext.GaussianDistribution(3))
    ours = [illia_ext.GaussianDistribution(3), Ours(), scripted]
    model = nn.ModuleList([*ours, Variational(), Categorical(), nn.LSTM(2, 2)])
    kinds = [type(module) for module in model.modules()]
    assert replace_distributions(model) == 0
    assert kinds == [type(module) for module in model.modules()]


class Clipped(GaussianDistribution):
    def sample(self) -> Tensor:
        return super().sample().clamp(-1, 1)


class Called(GaussianDistribution):
    def forward(self) -> Tensor:
        return self.sample()


class Exponential(IlliaModule):
    """sigma = exp(rho)."""

    sample, num_params = GaussianDistribution.sample, GaussianDistribution.num_params

    def __init__(self) -> None:
        super().__init__()
        vars(self).update(vars(GaussianDistribution((3, 2))), base=torch.e)

    def log_prob(self, x: Tensor | None = None) -> Tensor:
        sigma = self.base**self.rho
        q, p = torch.distributions.Normal(self.mu, sigma), torch.distributions.Normal(self.mu_prior, self.std_prior)
        return (q.log_prob(x) - p.log_prob(x)).sum()


def with_method(name: str, method: Callable[..., Any]) -> Callable[[], nn.Module]:
    """illia's distribution but for one method."""
    methods = {other: getattr(GaussianDistribution, other) for other in ("sample", "log_prob", "num_params")}

    def make() -> nn.Module:
        distribution: Any = type("Other", (IlliaModule,), {**methods, name: method})()
        vars(distribution).update(vars(GaussianDistribution((3, 2))))
        return distribution

    return make


def changed(change: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        distribution = GaussianDistribution((3, 2))
        change(distribution)
        return distribution

    return make


def through_file(module: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "method overridden": (lambda: Clipped((3, 2)), r"of class Clipped: .* its own \['sample'\]"),
    "method added": (lambda: Called((3, 2)), r"its own \['forward'\]"),
    "method of the object": (changed(lambda d: setattr(d, "log_prob", lambda x: x)), r"its own \['log_prob'\]"),
    "attribute that hides ours": (changed(lambda d: setattr(d, "kl_divergence", 0)), r"its own \['kl_divergence'\]"),
    "another density": (Exponential, "expected illia's log_prob, 4.05.* got 3.08"),
    "mean in eval": (
        with_method("sample", lambda d: GaussianDistribution.sample(d) if d.training else d.mu),
        r"expected illia's sample, mu \+ softplus\(rho\) \* eps in train and in eval mode",
    ),
    "another sample": (with_method("sample", lambda d: d.mu + d.rho.exp() * torch.randn(3)), "expected illia's sample"),
    "another count": (with_method("num_params", lambda d: 2 * d.mu.numel()), "num_params, 3 for mu .* got 6"),
    "fails": (with_method("log_prob", lambda d, x: d.missing), "has no attribute 'missing'"),
    "scripted": (lambda: torch.jit.script(GaussianDistribution((3, 2))), "replace first, then script"),
    "scripted, loaded": (lambda: through_file(torch.jit.script(GaussianDistribution(3))), "replace first, then script"),
    "parametrized": (
        changed(lambda d: parametrizations.register_parametrization(d, "mu", nn.Tanh())),
        "unparametrized, .* got .*'parametrizations'",
    ),
    "buffer added": (changed(lambda d: d.register_buffer("mask", torch.ones(2))), "nothing else, got .*'mask'"),
    "module added": (changed(lambda d: d.add_module("child", nn.ReLU())), "nothing else, got .*'child'"),
    "attribute missing": (changed(lambda d: delattr(d, "rho_init")), r"got none of \['rho_init'\]"),
    "shapes": (changed(lambda d: setattr(d, "rho", nn.Parameter(torch.ones(3)))), r"\[3, 2\] on cpu and .* \[3\]"),
    "complex": (changed(lambda d: d.to(torch.complex64)), "one floating dtype, .* got torch.complex64"),
    "std_prior": (lambda: GaussianDistribution((3, 2), std_prior=-0.5), "std_prior: expected positive .* got -0.5"),
    "mu_prior": (changed(lambda d: d.mu_prior.fill_(torch.inf)), "mu_prior: expected finite values .* got inf"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:Complex modules")
@parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_refused_with_nothing_changed(make: Callable[[], nn.Module], message: str) -> None:
    model = nn.ModuleDict({"first": GaussianDistribution(3), "second": nn.ModuleList([make()])})
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=rf"model: cannot replace second.0 .*{message}"):
        replace_distributions(model)
    assert kinds == [type(module) for module in model.modules()]
    assert model["first"].shape == 3


@parametrize("model", [3, None, GaussianDistribution, [nn.Linear(2, 2)]])
def test_no_model(model: Any) -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got "):
        replace_distributions(model)
