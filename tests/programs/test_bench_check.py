"""The benchmark's checks: right cases and peers pass, and every kind of wrong one is found."""

import itertools
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, Normal, StudentT

from bench.cases import CASES, COMPILE_OPTIONS, eager, formulas, fused
from bench.check import LARGE, Wrong, check_layer, check_network, check_noise, closed_form, sampled
from bench.layers import CaseLinear, Network, WholeNetwork
from bench.measure import Subject
from bench.peers import PEERS, Peer, load_peers, make
from bench.priors import priors
from bench.setting import Setting
from bench.steps import Contender, by_layer
from bench.tensors import Tensors, resnet50, resnet50_numels, samples
from bench.transforms import Draws, Values, transforms, ways
from illia_ext import ScaleMixture, functional, random

SETTING = Setting(["eager", "illia_ext"], {}, torch.device("cpu"), torch.float32, compile_once=True)


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "WIDTHS", (64, 64, 64, 10))


def check(case: Callable[..., tuple[Tensor, Tensor]], numel: int = 1000, **more: Any) -> None:
    of = Tensors([numel], replace(SETTING, dtype=more.pop("dtype", torch.float32)), **more)
    of.check(partial(of.backward, of.draw(case)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", [eager, formulas, fused])
def test_right_cases_pass(case: Any, dtype: torch.dtype) -> None:
    check(case, dtype=dtype)


def test_several_samples_pass() -> None:
    check(fused, num_samples=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILE_OPTIONS)
def test_compiled_cases_are_right(name: str) -> None:
    check(CASES[name])
    Contender(name, partial(by_layer, partial(CaseLinear, formulas)), SETTING).check()


@pytest.mark.slow
def test_the_compiled_transform_is_right() -> None:
    subjects = transforms(100, replace(SETTING, compile_once=False))
    next(subject for subject in subjects if subject.case == "torch.compile").check()


def given_noise(eps: Tensor):
    """A case that is right in all but its noise."""

    def case(mu, rho, *prior):
        sigma = torch.nn.functional.softplus(rho)
        x = mu + sigma * eps
        return x, sampled(x, mu, sigma, *prior).sum()

    return case


def with_log_prob(change):
    def case(*arguments):
        x, log_prob = fused(*arguments)
        return x, change(log_prob)

    return case


def in_half(*arguments):
    return fused(*(argument.half().to(argument.dtype) for argument in arguments))


def without_gradient_to_rho(mu, rho, *prior):
    return fused(mu, rho * 0 + rho.detach(), *prior)


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (with_log_prob(lambda log_prob: log_prob / 2), "log_prob is off by"),
        (with_log_prob(lambda log_prob: log_prob.detach() + 0 * log_prob), "grad_mu is off by"),
        (with_log_prob(lambda log_prob: 2 * log_prob.detach() - log_prob), "grad_mu is off by"),
        (without_gradient_to_rho, "grad_rho is off by"),
        (given_noise(torch.zeros(10**4)), "noise: mean square is off by"),
        (given_noise(torch.ones(10**4)), "noise: mean mean is off by"),
        (given_noise(torch.rand(10**4) * 12**0.5 - 3**0.5), "noise: mean fourth power is off by"),
        (given_noise(torch.randn(10**4)), "noise: two draws have a correlation of"),
    ],
)
def test_wrong_cases_are_found(case: Any, sentence: str) -> None:
    with pytest.raises(Wrong, match=sentence):
        check(case, 10**4)


def test_less_precision_than_asked_for_is_found() -> None:
    with pytest.raises(Wrong, match="is off by"):
        check(in_half, dtype=torch.float64)
    with pytest.raises(Wrong, match=r"x is torch\.float32"):
        check(lambda *arguments: tuple(out.float() for out in fused(*arguments)), dtype=torch.float64)


@pytest.fixture
def eps() -> list[Tensor]:
    return list(torch.randn(6, LARGE, generator=torch.Generator().manual_seed(0)))


SHARED = {  # numbers of eps, of each tensor in each draw
    "a sample like the one before": [[0], [1], [1]],
    "samples with the same keys in each call": [[0], [1], [2], [0], [1], [2]],
    "tensors with one key in each call": [[0, 1, 2], [0, 1, 2]],
    "tensors that share two noises in turn": [[0, 1, 0, 1], [2, 3, 2, 3]],
}


@pytest.mark.parametrize("draws", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("numel", [64, 1000, LARGE])
def test_noise_that_is_not_drawn_anew_is_found(draws: list[list[int]], numel: int, eps: list[Tensor]) -> None:
    check_noise([[eps[0][:numel], eps[1][:numel]], [eps[2][:numel], eps[3][:numel]]], torch.float32)
    with pytest.raises(Wrong, match="correlation"):
        check_noise([[eps[index][:numel] for index in draw] for draw in draws], torch.float32)


def test_noise_of_many_tensors_in_bfloat16_is_compared(eps: list[Tensor]) -> None:
    with pytest.raises(Wrong, match="correlation"):
        check_noise([[eps[0][:256]] * 161, [eps[1][:256]] * 161], torch.bfloat16)


def test_right_noise_of_few_elements_passes() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        check_noise([[torch.randn(10, generator=generator)] for _ in range(2)], torch.float32)


def test_tensors_of_different_sizes_that_share_their_noise_are_found(eps: list[Tensor]) -> None:
    with pytest.raises(Wrong, match="correlation"):
        check_noise([[eps[0], eps[1], eps[0][:100]], [eps[2], eps[3], eps[4][:100]]], torch.float32)


def test_wrong_noise_of_small_tensors_is_found(eps: list[Tensor]) -> None:
    """Each by itself is too small to tell."""
    for factor, found in (1.0, nullcontext()), (1.3, pytest.raises(Wrong, match="noise: mean square")):
        with found:
            check_noise([[eps[0], *(factor * eps[1]).split(40)], [eps[2], *eps[3].split(40)]], torch.float32)


def test_many_draws_pass() -> None:
    """As many tensors as ResNet-50 has, most of them small, in two draws; and 64 samples."""
    torch.manual_seed(0)
    check_noise([[torch.randn(min(numel, 2**13)) for numel in resnet50_numels(161)] for _ in range(2)], torch.float32)
    check_noise([[torch.randn(2**13)] for _ in range(64)], torch.float32)


def wrong_without_gradients(kind: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def case(mu, rho, *prior):
        x, log_prob = fused(mu, rho, *prior)
        if torch.is_grad_enabled():
            return x, log_prob
        return {"noise": given_noise(torch.zeros(mu.shape))(mu, rho, *prior), "log_prob": (x, 2 * log_prob)}[kind]

    return case


@pytest.mark.parametrize(("kind", "sentence"), [("noise", "noise: mean square"), ("log_prob", "log_prob is off by")])
def test_a_draw_that_is_wrong_without_gradients_is_found(kind: str, sentence: str) -> None:
    of = Tensors([10**4], SETTING)
    subject = of.subject("forward + backward", 10**4, "eager", of.draw(wrong_without_gradients(kind)))
    subject.check()
    with pytest.raises(Wrong, match=sentence):
        of.forward(subject, "forward", "eager").check()


def test_a_sum_over_samples_that_leaves_one_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    eager_samples = samples([3], 10**4, SETTING)[0]
    eager_samples.check()
    backward = Tensors.backward
    calls = itertools.count(1)

    def lost(*args: Any, **more: Any) -> Any:
        outputs, grads = backward(*args, **more)
        return outputs, grads if next(calls) % 3 else [0 * grad for grad in grads]

    monkeypatch.setattr(Tensors, "backward", lost)
    with pytest.raises(Wrong, match="grad_mu is off by"):
        eager_samples.check()


def test_a_training_step_with_the_same_noise_in_each_call_is_found() -> None:
    """As a compiled one might have, while its layers by themselves are right."""
    contender = Contender("eager", partial(by_layer, partial(CaseLinear, eager)), SETTING)
    contender.check()
    contender.loss = lambda *data: torch.manual_seed(0) and contender.network(*data)
    with pytest.raises(Wrong, match="two calls have the same loss"):
        contender.check()


def prior_subjects() -> dict[str, Subject]:
    peers = {name: make for name, make in load_peers()[0].items() if name == "blitz"}
    return {subject.case: subject for subject in priors([10**4, 100], replace(SETTING, peers=peers))}


def test_every_prior_is_right() -> None:
    subjects = prior_subjects()
    assert len(subjects) == 5 + ("blitz" in load_peers()[0])
    for subject in subjects.values():
        subject.check()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("Normal", Laplace),
        ("Laplace", lambda loc, scale: Laplace(loc, 1.01 * scale)),
        ("Laplace", lambda loc, scale: Laplace(loc + 0.01, scale)),
        ("ScaleMixture", lambda weight, std1, std2: ScaleMixture(1 - weight, std1, std2)),
        ("ScaleMixture", lambda weight, std1, std2: ScaleMixture(weight, std1, 1.01 * std2)),
        ("StudentT", lambda df, loc, scale: StudentT(1.1 * df, loc, scale)),
    ],
)
def test_a_wrong_prior_is_found(name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where illia_ext is given another one than the check expects."""
    right = Tensors.module_subject
    kind = {"Normal": Normal, "Laplace": Laplace, "ScaleMixture": ScaleMixture, "StudentT": StudentT}[name]

    def given(self: Tensors, work: str, point: int, case: str, used: Any, **expected: Any) -> Subject:
        if type(used) is kind:
            names = ["df"] * (kind is StudentT) + ["loc", "scale"]
            arguments = used.numbers if kind is ScaleMixture else [getattr(used, each) for each in names]
            used, case = wrong(*arguments), "wrong"
        return right(self, work, point, case, used, **expected)

    monkeypatch.setattr(Tensors, "module_subject", given)
    with pytest.raises(Wrong, match="is off by"):
        prior_subjects()["wrong"].check()


def test_the_mixture_of_other_libraries_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.priors.log_sum_exp", lambda mu, rho, *_: fused(mu, rho, 0.0, 1.0))
    with pytest.raises(Wrong, match="log_prob is off by"):
        prior_subjects()["eager, scale mixture"].check()


def test_antithetic_samples_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain samples are no pairs, pairs are no plain samples, and each pair has noise of its own."""
    of = Tensors([10**4], SETTING, num_samples=4)
    plain, pairs = (
        partial(of.backward, of.draw(partial(fused, antithetic=antithetic))) for antithetic in (False, True)
    )
    of.check(pairs, antithetic=True)
    with pytest.raises(Wrong, match="the noise of a pair is off by"):
        of.check(plain, antithetic=True)
    with pytest.raises(Wrong, match="two draws have a correlation of 1"):
        of.check(pairs)
    monkeypatch.setattr(random, "draw_key", lambda num_samples, **_: random.split(random.key(0), num_samples))
    with pytest.raises(Wrong, match="two draws have a correlation of 1"):
        of.check(pairs, antithetic=True)


def test_keys_that_stay_the_same_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In samples, and in all ways to draw ResNet-50's tensors in one call."""
    keys = random.split(random.key(0), 3)
    monkeypatch.setattr(random, "draw_key", lambda num_samples=None, **_: keys[0] if num_samples is None else keys)
    with pytest.raises(Wrong, match="correlation"):
        check(fused, 10**4, num_samples=3)
    at_once = next(subject for subject in resnet50(33, SETTING) if subject.case == "illia_ext")
    with pytest.raises(Wrong, match="correlation"):
        at_once.check()


def test_densities() -> None:
    """One weight, by hand: q = N(1, 2^2), p = N(-1, 1), x = 3, that is z = 1 and z_prior = 4."""
    mu, sigma, x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    log2 = 0.6931471805599453
    assert float(sampled(x, mu, sigma, -1.0, 1.0)) == pytest.approx(-log2 - 0.5 + 8)
    assert float(closed_form(mu, sigma, -1.0, 1.0)) == pytest.approx(-log2 + (4 + 4) / 2 - 0.5)


def test_layers_are_checked() -> None:
    torch.manual_seed(0)
    check_layer(CaseLinear(fused, 20, 10))

    class Doubled(CaseLinear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, cost = super().forward(x)
            return y, 2 * cost

    class Claimed(CaseLinear):
        closed = True

    class Repeated(CaseLinear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            torch.manual_seed(0)
            return super().forward(x)

    for wrong, sentence in (Doubled, "log_prob is off by"), (Claimed, "log_prob is off by"), (Repeated, "correlation"):
        with pytest.raises(Wrong, match=sentence):
            check_layer(wrong(fused, 20, 10))

    def without_noise_in_the_bias(mu, *arguments):
        return (given_noise(torch.zeros(mu.shape)) if mu.dim() == 1 else fused)(mu, *arguments)

    with pytest.raises(Wrong, match="noise: mean square"):
        check_layer(CaseLinear(without_noise_in_the_bias, 1024, 10), CaseLinear(without_noise_in_the_bias, 10, 1024))


def test_networks_are_checked() -> None:
    torch.manual_seed(0)
    network = Network([CaseLinear(fused, 20, 30), CaseLinear(fused, 30, 10)])
    for _, raw in network.pairs():
        torch.nn.init.constant_(raw, -16)
    x, target = torch.randn(5, 20), torch.arange(5)
    check_network(network(x, target), network, x, target)
    with pytest.raises(Wrong, match="loss is off by"):
        check_network(network(x, target) + 0.1, network, x, target)
    extra = network(-x, target)
    with pytest.raises(Wrong, match=r"gradient of layer 0's weight[.]mu is off by"):
        check_network(network(x, target) + extra - extra.detach(), network, x, target)


def wrong_op(kind: str) -> Callable[..., tuple[list[Tensor], Tensor]]:
    right = functional.foreach_gaussian_sample_and_log_prob

    def wrong(
        mu: list[Tensor], rho: list[Tensor], mu_prior: Any, std_prior: Any, key: Tensor, *more: Any, **keywords: Any
    ) -> Any:
        if kind == "noise":  # one for all tensors
            draws = [functional.gaussian_sample_and_log_prob(m, r, mu_prior, std_prior, key) for m, r in zip(mu, rho)]
            return [x for x, _ in draws], sum(log_prob for _, log_prob in draws)
        xs, log_prob = right(mu, rho, mu_prior, std_prior, key, *more, **keywords)
        return (xs, 1.01 * log_prob) if kind == "log_prob" else ([*xs[:-1], 1.1 * xs[-1]], log_prob)

    return wrong


@pytest.mark.parametrize("kind", ["a draw", "log_prob", "noise"])
def test_a_wrong_draw_of_many_tensors_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "foreach_gaussian_sample_and_log_prob", wrong_op(kind))
    checks = [s.check for s in resnet50(4, SETTING) if s.case in ("illia_ext", "illia_ext, BayesianModule")]
    for wrong in (*checks, Contender("illia_ext", WholeNetwork, SETTING).check):
        with pytest.raises(Wrong, match=r"is off by|have a correlation of"):
            wrong()
    assert len(checks) == 2


def test_a_sample_that_is_left_out_is_found() -> None:
    contender = Contender("illia_ext, 8 samples", partial(WholeNetwork, 2), SETTING)
    contender.check()
    both = contender.network.bnn.forward
    contender.network.bnn.forward = lambda *args, **more: tuple(of[:1] for of in both(*args, **more))
    with pytest.raises(Wrong, match=r"loss is off by|gradient of layer 0's weight[.]mu is off by"):
        contender.check()


FORWARD = {"no gradients", "forward", "module, forward"}
EIGHT = {"8 calls", "8 samples", "vmap over 8 keys", "vmap over 8 parameters"}
ALL = {subject.case for subject in transforms(10, SETTING)}


def changed(draws: Draws, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Draws:
    return Draws(*(lambda *args, draw=draw: change(*draw(*args)) for draw in draws))


def second_of_mu_alone(draws: Draws, given: Values) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    def double_backward() -> tuple[Tensor, ...]:
        x, log_prob = draws.function(*given.leaves, given.keys[0])
        loss = (x * given.direction).sum() + 0.1 * log_prob
        grads = torch.autograd.grad(loss, given.leaves, create_graph=True)
        return torch.autograd.grad(grads[0], given.leaves, given.direction)

    return ways(draws, given) | {"double backward": double_backward}


def every_way_as(way: str) -> Callable[[Draws, Values], dict[str, Callable[[], tuple[Tensor, ...]]]]:
    """Every way gives the outputs of this one."""
    return lambda draws, given: dict.fromkeys(ways(draws, given), ways(draws, given)[way])


WRONG_WAYS = {
    "none": (ways, set()),
    "x off": (lambda d, g: ways(changed(d, lambda x, log_prob: (1.1 * x, log_prob)), g), ALL),
    "log_prob ignored": (lambda d, g: ways(changed(d, lambda x, log_prob: (x, 0 * log_prob)), g), ALL),
    "x ignored": (lambda d, g: ways(d, g._replace(direction=0 * g.direction)), ALL - FORWARD),
    "another key": (lambda d, g: ways(d, g._replace(keys=g.keys.roll(1, 0))), ALL - EIGHT | {"vmap over 8 parameters"}),
    "one key for all": (lambda d, g: ways(d, g._replace(keys=g.keys[:1].repeat(8, 1))), EIGHT),
    "one call of eight": (every_way_as("a loss"), FORWARD | EIGHT | {"jvp", "double backward"}),
    "second gradient of mu alone": (second_of_mu_alone, {"double backward"}),
}


@pytest.mark.parametrize(("wrong", "found"), WRONG_WAYS.values(), ids=WRONG_WAYS)
def test_a_wrong_transform_is_found(wrong: Any, found: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.transforms.ways", wrong)
    for subject in transforms(100, SETTING):
        with pytest.raises(Wrong, match=r"output \d is off by") if subject.case in found else nullcontext():
            subject.check()


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> type[Peer]:
    skipped = load_peers()[1]
    if request.param in skipped:
        pytest.skip(skipped[request.param])
    return PEERS[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_peers_are_right(peer: type[Peer], dtype: torch.dtype, device: torch.device) -> None:
    """Costs, gradients and noise; initial values as all others have; and torch's default dtype stays."""
    torch.manual_seed(0)
    layer = make(peer, 200, 300, device, dtype)
    assert {(leaf.dtype, leaf.device.type) for pair in layer.pairs() for leaf in pair} == {(dtype, device.type)}
    assert [tuple(mu.shape) for mu, _ in layer.pairs()] == [(300, 200), (300,)]
    for mu, raw in layer.pairs():
        assert mu.std().item() == pytest.approx(0.1, rel=0.2)
        assert layer.sigma(raw).log().mean().item() == pytest.approx(math.log(math.log1p(math.exp(-5))), abs=0.05)
    check_layer(layer)
    assert torch.get_default_dtype() == torch.float32


def test_gradients_of_a_layer_are_exact_to_rounding(device: torch.device) -> None:
    class Larger(CaseLinear):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, cost = super().forward(x)
            return 1.001 * y - 0.001 * y.detach(), cost

    with pytest.raises(Wrong, match="grad_mu is off by"):
        check_layer(Larger(fused, 20, 10, device=device, dtype=torch.float64))


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("missing", [True, False])
def test_a_peer_that_cannot_be_imported(
    name: str, missing: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = PEERS[name].modules[0].partition(".")[0]
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    if missing:
        monkeypatch.setitem(sys.modules, package, None)
    else:
        (tmp_path / f"{package}.py").write_text("raise RuntimeError('made for\\nanother torch')\n")
        monkeypatch.syspath_prepend(tmp_path)
    loaded, skipped = load_peers()
    assert name not in loaded
    assert {*loaded, *skipped} == set(PEERS)
    reason = skipped[name]
    assert (package in reason and "\n" not in reason) if missing else reason == "RuntimeError: made for another torch"
