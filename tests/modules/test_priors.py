"""Priors other than a Gaussian: their values and gradients by torch.distributions and by quadrature, and refusals."""

import math
from typing import Any, ClassVar

import pytest
import torch
from helpers import SHAPES
from prior_cases import (
    INPUTS,
    KEY,
    OF_A_MODULE,
    PRIORS,
    Learned,
    Logistic,
    assert_near,
    distribution_of,
    expected_log_prob,
    f64,
    make_network,
    parameters_of,
)
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Exponential,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    Poisson,
    ReshapeTransform,
    SigmoidTransform,
    StudentT,
    TransformedDistribution,
    Uniform,
    constraints,
)

from illia_ext import BayesianModule, GaussianDistribution, ScaleMixture
from illia_ext.random import split

parametrize = pytest.mark.parametrize


@parametrize("name", PRIORS)
@parametrize("shape", [*SHAPES, (2, 1, 5)])
def test_values_and_gradients_are_those_of_torch_distributions(name: str, shape: tuple[int, ...]) -> None:
    if name == "mixture" and 0 in shape:
        pytest.skip("torch's MixtureSameFamily takes no empty tensor")
    prior = PRIORS[name]()
    torch.manual_seed(0)
    layer = GaussianDistribution(shape, rho_init=-1.0, prior=prior, dtype=torch.float64)
    keys = split(KEY, 3)
    x, log_prob = layer.sample_and_log_prob(key=keys)
    expected_x = (
        layer.mu + nn.functional.softplus(layer.rho) * ((x - layer.mu) / nn.functional.softplus(layer.rho)).detach()
    )
    given = torch.linspace(-2, 2, layer.mu.numel(), dtype=torch.float64).reshape(shape).requires_grad_()

    def expected(x: Tensor) -> Tensor:
        q = Normal(layer.mu, nn.functional.softplus(layer.rho))
        terms = q.log_prob(x) - distribution_of(prior).log_prob(x)
        return terms.flatten(x.dim() - len(shape)).sum(-1) if shape else terms

    parameters = [*{id(p): p for p in parameters_of(layer, prior)}.values()]
    for ours, theirs, inputs in (
        (log_prob + x.sin().sum(), expected(expected_x) + expected_x.sin().sum(), parameters),
        (layer.log_prob(given), expected(given), [*parameters, given]),
    ):
        assert_near(ours, theirs, 1e3)
        ours_grads = torch.autograd.grad(ours.sum(), inputs, allow_unused=True, retain_graph=True)
        their_grads = torch.autograd.grad(theirs.sum(), inputs, allow_unused=True, retain_graph=True)
        for a, b in zip(ours_grads, their_grads):
            assert_near(a, b, 1e3)


@parametrize("name", ["laplace", "scale mixture", "student", "mixture"])
def test_the_mean_of_log_prob_is_the_divergence_by_quadrature(name: str) -> None:
    prior: Any = PRIORS[name]()
    layer = GaussianDistribution((), mu_init=0.2, rho_init=-1.5, prior=prior, dtype=torch.float64)
    log_probs = layer.sample_and_log_prob(2**16)[1].detach()
    q: Any = layer.to_distribution()
    with torch.no_grad():
        # the trapezium rule: q is 0 to the last bit at both ends; its error is below the mean's by far
        x = layer.mu + nn.functional.softplus(layer.rho) * torch.linspace(-10, 10, 2**16 + 1, dtype=torch.float64)
        divergence = torch.trapezoid((q.log_prob(x) - prior.log_prob(x)) * q.log_prob(x).exp(), x)
    standard_error = log_probs.std() / len(log_probs) ** 0.5
    assert (log_probs.mean() - divergence).abs() < 5 * standard_error  # by chance once in 1.7e6 seeds
    if name == "laplace":
        assert_near(layer.kl_divergence(), divergence, 1e3)  # the rule's error at the kink is of the step's square
    else:
        with pytest.raises(
            NotImplementedError, match=f"no closed form between a Gaussian and a {type(prior).__name__}"
        ):
            layer.kl_divergence()


def test_the_scale_mixture_of_blitz() -> None:
    blitz = pytest.importorskip("blitz.modules.weight_sampler")
    numbers = (0.5, 1.0, 0.0025)
    weights = torch.tensor([-2.0, -0.3, -0.01, 0.0, 0.004, 0.5])
    ours = ScaleMixture(*numbers).log_prob(weights)
    # its sum has 1e-6 beside each density, and 1/2 less for each weight
    theirs = blitz.PriorWeightDistribution(*numbers).log_prior(weights) + len(weights) / 2
    assert (ours.sum() - theirs).abs() < (1e-6 / ours.exp()).sum() + 1e-5  # and float32's roundings of 14 nats


def test_the_scale_mixture_is_a_distribution() -> None:
    mixture = ScaleMixture(0.3, *f64(1.0, 0.01))
    points = torch.tensor([0.0, 1e-3, 0.05, 0.4, 3.0, 100.0, 1e6, -1e100], dtype=torch.float64)
    components = [Normal(0.0, std).log_prob(points) for std in f64(1.0, 0.01)]
    assert_near(mixture.log_prob(points), torch.logaddexp(components[0] + math.log(0.3), components[1] + math.log(0.7)))
    x = torch.linspace(-12, 12, 2**18 + 1, dtype=torch.float64)
    assert torch.trapezoid(mixture.log_prob(x).exp(), x).item() == pytest.approx(1, abs=1e-9)  # steps of 1/100 std2
    torch.manual_seed(0)
    samples = mixture.sample((2**16,))
    assert samples.shape == (2**16,) and mixture.mean == 0
    # the standard error of x^2 is 1.5 2^-8: its variance, E x^4 - variance^2, is at most 3 weight
    assert samples.square().mean().item() == pytest.approx(mixture.variance.item(), abs=5 * (0.9 / 2**16) ** 0.5)
    assert mixture.expand((4, 3)).log_prob(torch.zeros(4, 3)).shape == (4, 3)
    assert Independent(mixture.expand((4, 3)), 2).log_prob(torch.zeros(4, 3)).shape == ()
    inputs = [value.requires_grad_() for value in (*f64(0.3, 1.0, 0.2), points[:5].clone())]
    assert torch.autograd.gradcheck(lambda w, s1, s2, x: ScaleMixture(w, s1, s2).log_prob(x), inputs)
    for numbers in ((0.0, 1.0, 0.1), (1.0, 1.0, 0.1), (1.5, 1.0, 0.1), (0.5, -1.0, 0.1), (0.5, 1.0, 0.0)):
        with pytest.raises(ValueError, match=r"weight|std"):
            ScaleMixture(*numbers, validate_args=True)


@parametrize("name", OF_A_MODULE)
def test_a_module_with_a_prior(name: str) -> None:
    prior = OF_A_MODULE[name]()
    bnn = BayesianModule(make_network(), prior=prior, rho_init=-2.0)
    keys = split(KEY, 5)
    outputs, log_probs = bnn(INPUTS, key=keys)
    for i, key in enumerate(keys):
        output, log_prob = bnn(INPUTS, key=key)
        assert torch.equal(output, outputs[i])
        assert_near(log_prob, log_probs[i], 1e3)
        # constants of float32 in torch's classes: 0.3 is 1e-8 off
        torch.testing.assert_close(log_prob, expected_log_prob(bnn, prior, key), rtol=1e-6, atol=1e-4)
    with bnn.sampled(KEY) as log_prob:
        (bnn.module(INPUTS).square().sum() + log_prob).backward()
    in_block = [p.grad.clone() for p in bnn.parameters() if p.grad is not None]
    bnn.zero_grad()
    output, log_prob = bnn(INPUTS, key=KEY)
    (output.square().sum() + log_prob).backward()
    for a, b in zip(in_block, [p.grad for p in bnn.parameters() if p.grad is not None], strict=True):
        assert_near(a, b, 1e3)
    assert not bnn.module[0].weight.grad[2].any() and not bnn.rho.get_parameter("0.weight").grad[2].any()


@parametrize("name", ["scale mixture", "student", "mixture", "learned laplace", "learned student"])
def test_programs_and_transforms(name: str) -> None:
    bnn = BayesianModule(make_network(), prior=PRIORS[name](), rho_init=-2.0)
    keys = split(KEY, 2)
    parameters = dict(bnn.named_parameters())
    output, log_prob = bnn(INPUTS, key=keys)
    grads = torch.autograd.grad(output.sum() + log_prob.sum(), list(parameters.values()))

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        output, log_prob = torch.func.functional_call(bnn, parameters, (INPUTS,), {"key": keys})
        return output.sum() + log_prob.sum()

    for a, b in zip(torch.func.grad(loss)(parameters).values(), grads, strict=True):
        assert_near(a, b, 1e3)
    directions = {name: torch.ones_like(parameter) for name, parameter in parameters.items()}
    directions["module.0.weight"][2] = 0  # forward mode knows no padding row
    tangent = torch.func.jvp(loss, (parameters,), (directions,))[1]
    assert_near(tangent, sum(grad.sum() for grad in grads), 1e3)
    compiled = torch.compile(lambda inputs, keys: bnn(inputs, key=keys), fullgraph=True, backend="aot_eager")
    compiled_output, compiled_log_prob = compiled(INPUTS, keys)
    assert_near(compiled_log_prob, log_prob, 1e3)
    compiled_grads = torch.autograd.grad(compiled_output.sum() + compiled_log_prob.sum(), list(parameters.values()))
    for a, b in zip(compiled_grads, grads, strict=True):
        assert_near(a, b, 1e3)
    at_once = BayesianModule(make_network(), prior=PRIORS[name](), rho_init=-2.0, chunk_size=2)
    assert_near(at_once(INPUTS, key=keys)[1], log_prob, 1e3)
    with torch.autocast("cpu", torch.bfloat16):
        assert bnn.float()(INPUTS, key=KEY)[1].dtype == torch.float32


@parametrize("rho", [-120.0, -95.0, -46.0, -5.0, 3.0])
def test_the_divergence_from_a_laplace_prior(rho: float) -> None:
    """Against log_prob's mean where sigma is small, and finite with its gradients wherever rho is finite."""
    layer = GaussianDistribution(40, prior=Laplace(0.0, 0.5), dtype=torch.float64)
    with torch.no_grad():
        layer.mu[:5] = 0
        layer.rho.fill_(rho)
    divergence = layer.kl_divergence()
    grads = torch.autograd.grad(divergence, (layer.mu, layer.rho))
    assert divergence.isfinite() and all(grad.isfinite().all() for grad in grads)
    if rho <= -46:  # |x| is |mu| but for 1e-20
        q: Any = nn.functional.logsigmoid(layer.rho)  # log sigma = rho there, to the last bit
        expected = (-q - (1 + math.log(2 * math.pi)) / 2 + layer.mu.abs() / 0.5).sum()  # log(2 * 0.5) is 0
        assert_near(divergence, expected, 1e3)
    single = layer.float()
    assert all(g.isfinite().all() for g in torch.autograd.grad(single.kl_divergence(), (single.mu, single.rho)))
    expected_mu = torch.erf(single.mu / nn.functional.softplus(single.rho) / 2**0.5) / 0.5
    if rho > -46:
        assert_near(torch.autograd.grad(single.kl_divergence(), single.mu)[0].double(), expected_mu.double(), 1e6)


class Horseshoe(Logistic):
    """The lower bound of Carvalho et al. (2010), which has a pole at 0."""

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.log1p(2 * (self.scale / value) ** 2).log()


def test_a_pole_at_the_padding_row() -> None:
    bnn = BayesianModule(make_network(), prior=Horseshoe(f64(0.5)[0]), rho_init=-2.0)
    output, log_prob = bnn(INPUTS, num_samples=2)
    (output.sum() + log_prob.sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in bnn.parameters())
    assert not bnn.module[0].weight.grad[2].any()


def test_small_scales_have_gradients() -> None:
    for std in (1e-20, 1e-40):
        values = torch.tensor([0.0, 1e-30, 0.1, 3.0], requires_grad=True)
        log_prob = ScaleMixture(0.5, 1.0, std).log_prob(values)
        (grad,) = torch.autograd.grad(log_prob.sum(), values)
        assert log_prob.isfinite().all() and grad[[0, 2, 3]].isfinite().all()
        torch.testing.assert_close(grad[2:], -values[2:].detach())
    for prior in (Laplace(0.0, 1e-8), StudentT(3.0, 0.0, 1e-8), ScaleMixture(0.5, 1.0, 2e-8)):
        assert BayesianModule(make_network(), prior=prior).half()(INPUTS, key=KEY)[1].isfinite()


def test_the_divergence_of_mixed_priors_with_small_sigma() -> None:
    prior = {"mixed": lambda name, weight: Laplace(0.0, 1.0) if "bias" in name else Normal(0.0, 1.0)}["mixed"]
    bnn = BayesianModule(make_network(), prior=prior, rho_init=-120.0).float()
    bnn.kl_divergence().backward()
    assert all(p.grad.isfinite().all() for p in bnn.parameters() if p.grad is not None)


def test_a_prior_of_one_row_beside_a_padding_row() -> None:
    network = nn.Embedding(6, 4, padding_idx=0)
    row, one = (BayesianModule(network, prior=Laplace(torch.zeros(shape), 1.0)) for shape in ((1, 4), (1,)))
    inputs = torch.tensor([0, 1])
    assert row(inputs, key=KEY)[1] == one(inputs, key=KEY)[1]


def test_no_sample_of_a_composed_prior() -> None:
    layer = GaussianDistribution(3, prior=StudentT(3.0, 0.0, 1.0))
    x, log_prob = layer.sample_and_log_prob(0)
    assert x.shape == (0, 3) and log_prob.shape == (0,)


def test_a_fixed_prior_is_not_checked_at_each_call() -> None:
    """Which would make a GPU wait."""
    bnn = BayesianModule(make_network(), prior=StudentT(3.0, 0.0, 1.0, validate_args=True))
    assert bnn.prior()._validate_args is False


def test_a_subclass_has_no_closed_form_of_its_base() -> None:
    class Heavy(Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) / 2

    layer = GaussianDistribution(3, prior=Heavy(0.0, 1.0))
    with pytest.raises(NotImplementedError, match="no closed form between a Gaussian and a Heavy"):
        layer.kl_divergence()


def test_a_joint_density_of_rows_has_no_padding() -> None:
    joint = TransformedDistribution(MultivariateNormal(torch.zeros(24), torch.eye(24)), ReshapeTransform((24,), (6, 4)))
    with pytest.raises(ValueError, match="prior: expected no joint density of rows, one of which is padding"):
        BayesianModule(nn.Embedding(6, 4, padding_idx=0), prior=joint)
    rows = Independent(StudentT(3.0, torch.zeros(6, 4)), 2)
    bnn = BayesianModule(nn.Embedding(6, 4, padding_idx=0), prior=rows)
    one = BayesianModule(nn.Embedding(6, 4, padding_idx=0), prior=StudentT(3.0))
    one.module.load_state_dict(bnn.module.state_dict())
    inputs = torch.tensor([0, 1])
    torch.testing.assert_close(bnn(inputs, key=KEY)[1], one(inputs, key=KEY)[1], rtol=1e-6, atol=0)


class WithoutLogProb(Distribution):
    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real


class InPlace(Logistic):
    def log_prob(self, value: Tensor) -> Tensor:
        return -value.abs_()


class WithoutInit(Distribution):
    def __init__(self) -> None:
        pass


class OfAnotherShape(WithoutLogProb):
    def log_prob(self, value: Tensor) -> Tensor:
        return value.sum()


REFUSED = [
    (Exponential(1.0), ValueError, "expected a density on all real numbers, got Exponential"),
    (Poisson(1.0), ValueError, "expected a density, got Poisson, whose samples are integers"),
    (
        Normal(torch.zeros(5), 1.0),
        ValueError,
        r"expected a shape that broadcasts to \[3, 4\], got Normal of shape \[5\]",
    ),
    (Laplace(torch.zeros(2, 3, 4), 1.0), ValueError, r"expected a shape that broadcasts to \[3, 4\]"),
    (MultivariateNormal(torch.zeros(3), torch.eye(3)), ValueError, r"expected a shape that broadcasts to \[3, 4\]"),
    (WithoutLogProb(validate_args=False), ValueError, "WithoutLogProb, which has none"),
    (OfAnotherShape(validate_args=False), ValueError, r"OfAnotherShape.log_prob of shape \[1, 1\]"),
    (Laplace(torch.zeros(1, requires_grad=True), 1.0), ValueError, "got Laplace_loc, which requires a gradient"),
    (Laplace, TypeError, "expected an instance, got the class Laplace"),
    (0.3, TypeError, "expected a torch.distributions.Distribution, or an nn.Module that returns one, got 0.3"),
    (nn.Identity(), ValueError, "Identity fails: .*missing"),
    (Learned(lambda: torch.zeros(())), TypeError, "expected a module that returns a Distribution"),
    (Learned((lambda one: lambda: one)(Laplace(0.0, 1.0))), ValueError, "got the same one twice"),
    (Laplace(0.0, -1.0, validate_args=False), ValueError, "expected scale to satisfy GreaterThan"),
    (Logistic([nn.Parameter(torch.ones(()))]), ValueError, "requires a gradient"),
    (Logistic((lambda p: lambda: p)(nn.Parameter(torch.ones(())))), ValueError, "reads another tensor that requires"),
    (
        TransformedDistribution(Uniform(0.0, 1.0, validate_args=False), [SigmoidTransform().inv]),
        ValueError,
        "inverted transforms .* cannot be copied: make the distribution in the forward",
    ),
    (InPlace(torch.ones(())), ValueError, "leave its argument as it is"),
    (WithoutInit(), ValueError, "'WithoutInit' object has no attribute .* Does its __init__ call"),
]


@parametrize("prior, error, message", REFUSED)
@parametrize("of_a_module", [True, False])
def test_what_is_no_prior(prior: Any, error: type[Exception], message: str, of_a_module: bool) -> None:
    with pytest.raises(error, match=message):
        if of_a_module:
            BayesianModule(nn.Linear(4, 3, bias=False), prior=prior)
        else:
            GaussianDistribution((3, 4), prior=prior)


def test_one_prior_alone() -> None:
    for arguments in ({"mu_prior": 0.1}, {"std_prior": 0.3}, {"std_prior": torch.ones(1)}):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"{name}: expected none beside prior"):
            BayesianModule(nn.Linear(4, 3), prior=Laplace(0.0, 1.0), **arguments)
        with pytest.raises(ValueError, match=f"{name}: expected none beside prior"):
            GaussianDistribution(3, prior=Laplace(0.0, 1.0), **arguments)
    with pytest.raises(RuntimeError, match="prior: TorchScript takes a Gaussian prior alone"):
        torch.jit.script(GaussianDistribution(3, prior=Laplace(0.0, 1.0)))
    torch.jit.script(GaussianDistribution(3, prior=Normal(0.0, 1.0)))
