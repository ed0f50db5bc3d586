"""What BayesianModule, GaussianDistribution and the loss refuse: one sentence each, which names the argument."""

import re
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key
from module_cases import INPUTS, KEYS, Holder, make, make_network
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from illia_ext import (
    BayesianModule,
    GaussianDistribution,
    elbo_loss,
    mutual_information,
    predictive_entropy,
    random,
    relative_rho,
)

parametrize = pytest.mark.parametrize
inf, nan = float("inf"), float("nan")
Refusals = list[tuple[Any, type[Exception], str]]

ARGUMENTS: Refusals = [
    ({"select": "0.weight"}, TypeError, r"select: expected a function \(name, parameter\) or names, got '0.weight'"),
    ({"select": 3}, TypeError, "select: expected a function .* got 3"),
    ({"select": [3]}, TypeError, "select: expected names of parameters, got 3"),
    ({"select": ["0.weight", "5.weight"]}, ValueError, "select: expected names of parameters of module, got '5.w"),
    ({"select": ["0.wieght"]}, ValueError, r"got '0\.wieght'; of its 6 some are \['0\.weight'"),
    ({"select": ["zzz"]}, ValueError, r"got 'zzz'; of its 6 some are \['0\.bias', '0\.weight', '1\.bias'"),
    ({"select": ["0.weight", "0.weight"]}, ValueError, "select: expected each name once, got '0.weight' 2 times"),
    ({"select": []}, ValueError, r"select: expected at least one parameter, got none of \['0.weight'"),
    ({"select": lambda name, parameter: False}, ValueError, "select: expected at least one parameter"),
    ({"mu_prior": "a"}, TypeError, "mu_prior: expected a number, got 'a', for all weights"),
    ({"mu_prior": nn.Linear(2, 2)}, TypeError, "mu_prior: expected a number, a tensor or a function .* got a module"),
    ({"mu_prior": {"0.weight": torch.ones(99)}}, TypeError, r"mu_prior: expected a number, got \{'0\.w.{,75}, for"),
    ({"mu_prior": lambda name, _: torch.ones(7)}, ValueError, r"mu_prior: .* \[4, 3\], got \[7\], for 0.weight"),
    ({"std_prior": 0.0}, ValueError, "std_prior: expected a positive finite number, got 0.0"),
    ({"std_prior": nn.Parameter(torch.ones(2))}, ValueError, r"std_prior: expected one element.* got \[2\]"),
    ({"std_prior": lambda name, _: -1.0}, ValueError, "std_prior: .* got -1.0, for 0.weight"),
    ({"rho_init": nan}, ValueError, "rho_init of 0.weight: expected a finite number, got nan"),
    ({"rho_init": lambda _, weight: weight.log() * 0}, ValueError, "rho_init of 0.weight: .* finite .* got nan"),
    ({"rho_init": lambda name, _: torch.ones(7)}, ValueError, r"rho_init of 0.weight: .* \[4, 3\], got \[7\]"),
    ({"rho_init": -1e39}, ValueError, r"rho_init of 0.weight: expected a number in the range of torch.float32, got"),
    ({"rho_init": relative_rho}, TypeError, r"rho_init: expected relative_rho\(delta\), .* got relative_rho itself"),
    ({"chunk_size": 0}, ValueError, "chunk_size: must be at least 1, got 0"),
    ({"chunk_size": None}, TypeError, "chunk_size: expected an integer, got None"),
    ({"chunk_size": 1.5}, TypeError, "chunk_size: expected an integer, got 1.5"),
    ({"stick_the_landing": None}, TypeError, "^stick_the_landing: expected True or False, got None"),
    ({"stick_the_landing": 1}, TypeError, "^stick_the_landing: expected True or False, got 1"),
    ({"copy": False, "reset_parameters": True}, ValueError, "reset_parameters: expected False with copy=False"),
    *[
        ({argument: function}, TypeError, rf"{argument}: expected a function \(name, parameter\), got <function")
        for argument in ("select", "mu_prior", "std_prior", "rho_init")
        for function in (lambda name: 1.0, lambda: 1.0, lambda name, weight, more: 1.0)
    ],
]


@parametrize(("arguments", "error", "message"), ARGUMENTS)
def test_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BayesianModule(make_network(), **arguments)


@parametrize("argument", ["select", "mu_prior", "std_prior", "rho_init"])
def test_functions_that_are_taken(argument: str) -> None:
    given = partial(lambda value, name, weight: value, 1.0)
    for function in (lambda name, weight, more=2: 1.0, lambda *arguments: 1.0, given):
        BayesianModule(make_network(), **{argument: function})


class Foreign(nn.Module):
    """What illia's distributions are known by."""

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.rho = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))


class Drawing(nn.Module):
    """Draws its own weights, as layers of illia do."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = GaussianDistribution((3, 8))


MODULES: Refusals = [
    (3, TypeError, "module: expected an nn.Module, got 3"),
    (nn.Linear, TypeError, "module: expected an nn.Module, got <class"),
    (nn.ReLU(), ValueError, "select: expected at least one parameter, got none of .* ReLU"),
    (Holder(torch.ones(2, dtype=torch.complex64)), TypeError, "held.0: expected .* got torch.complex64; leave it"),
    (Holder(torch.ones(2, dtype=torch.int64)), TypeError, "held.0: expected .* got torch.int64; leave it"),
    (Holder(torch.ones(2), torch.ones(2).half()), ValueError, "held.1: expected the dtype of held.0, "),
    (Holder(torch.ones(2), torch.ones(2, device="meta")), ValueError, "held.1: .* device of held.0, cpu, got meta"),
    (Foreign(), ValueError, "mu: Foreign draws it by itself"),
    (BayesianModule(nn.Linear(2, 2)), ValueError, "expected plain layers, got BayesianModule, which draws"),
    (torch.jit.script(nn.Linear(2, 2)), TypeError, "module: expected a Python module, got RecursiveScriptModule"),
    *[
        (nn.Sequential(nn.Linear(2, 2), layer), ValueError, r"module: expected plain layers, got \w+ '1.*', .* missing")
        for layer in (Drawing(), BayesianModule(nn.Linear(2, 2)))
    ],
]


@parametrize(("module", "error", "message"), MODULES)
def test_modules(module: Any, error: type[Exception], message: str, cpu: object) -> None:
    with pytest.raises(error, match=message):
        BayesianModule(module, select=lambda name, parameter: True)


def test_a_layer_that_draws_is_refused_though_not_selected() -> None:
    """Its log_prob is no part of the sum."""
    with pytest.raises(ValueError, match=r"module: expected plain layers, got GaussianDistribution '1\.weights'"):
        BayesianModule(nn.Sequential(nn.Linear(4, 8), Drawing()), select=["0.weight"])


def freeze(bayesian: BayesianModule) -> None:
    bayesian.freeze(make_key(1))


CALLS: Refusals = [
    ({"num_samples": 0}, ValueError, "num_samples: must be at least 1, got 0"),
    ({"key": KEYS[:0]}, ValueError, r"key: expected at least one, got shape \[0, 2\]"),
    ({"num_samples": -1}, ValueError, "num_samples: must be at least 1, got -1"),
    ({"num_samples": 1.5}, TypeError, "num_samples: expected an integer, got 1.5"),
    ({"num_samples": 3, "key": KEYS}, ValueError, "num_samples: a key says how many .* got num_samples=3 too"),
    ({"key": 5}, TypeError, "key: expected a tensor, got 5"),
    ({"key": KEYS.double()}, TypeError, "key: expected int64 or uint64, got torch.float64"),
    ({"key": KEYS[None]}, ValueError, r"key: expected shape \[2\] or \[num_samples, 2\], got \[1, 5, 2\]"),
]


@parametrize(("arguments", "error", "message"), CALLS)
def test_calls(arguments: Any, error: type[Exception], message: str) -> None:
    bayesian = make(lambda module, hidden: hidden)
    for call in (bayesian, bayesian.eval().predict):
        with pytest.raises(error, match=message):
            call(INPUTS, **arguments)


METHODS: Refusals = [
    (lambda b: b.freeze(KEYS[:3]), ValueError, r"key: expected shape \[2\], got \[3, 2\]"),
    (lambda b: b.freeze(5), TypeError, "key: expected a tensor, got 5"),
    (lambda b: b.sampled(KEYS[:1]).__enter__(), ValueError, r"key: expected shape \[2\], got \[1, 2\]"),
    (lambda b: b.sampled(5).__enter__(), TypeError, "key: expected a tensor, got 5"),
    (lambda b: b.predict(INPUTS, key=KEYS[0]), ValueError, r"key: expected shape \[num_samples, 2\], got \[2\]"),
    (lambda b: b.predict(INPUTS, transform=3), TypeError, "transform: expected a function of the module's output, got"),
    (lambda b: [freeze(b), b.predict(INPUTS)], ValueError, "predict: the weights are frozen"),
    (
        lambda b: [freeze(b), b(INPUTS, num_samples=3)],
        ValueError,
        r"^num_samples: the weights are frozen; unfreeze\(\)",
    ),
    (lambda b: [freeze(b), b(INPUTS, key=KEYS[0])], ValueError, r"^key: the weights are frozen; unfreeze\(\) them"),
]


@parametrize(("call", "error", "message"), METHODS)
def test_methods(call: Callable[[BayesianModule], object], error: type[Exception], message: str) -> None:
    bayesian = make(lambda module, hidden: hidden).eval()
    with pytest.raises(error, match=message):
        call(bayesian)
    assert bayesian.frozen is ("frozen" in message)
    bayesian(INPUTS)


def make_prior(*shape: int) -> Tensor:
    return torch.linspace(0.25, 1.5, torch.Size(shape).numel()).reshape(shape).to(DEVICE)


DISTRIBUTIONS: Refusals = [
    ({"shape": 2.5}, TypeError, "shape: expected an integer or a sequence of integers, got 2.5"),
    ({"shape": True}, TypeError, "shape: expected an integer or a sequence of integers, got True"),
    ({"dtype": "x"}, TypeError, "dtype: expected float32, float64, float16 or bfloat16, got 'x'"),
    ({"rho_init": nan}, ValueError, "rho_init: expected a finite number, got nan"),
    ({"mu_prior": 1e39}, ValueError, "mu_prior: expected a number in the range of torch.float32, got 1e+39"),
    *[({"std_prior": n}, ValueError, f"std_prior: expected a positive finite number, got {n}") for n in (0, nan, inf)],
    ({"std_prior": 1e-50}, ValueError, "std_prior: expected a number in the range of torch.float32, got 1e-50"),
    *[
        ({name: prior}, error, f"{name}: expected {message}")
        for name in ("mu_prior", "std_prior")
        for prior, error, message in (
            (make_prior(3).int(), TypeError, "float32, float64, float16 or bfloat16, got torch.int32"),
            (make_prior(2), ValueError, "one element, or a shape that broadcasts to [3], got [2]"),
            (make_prior(1, 3), ValueError, "one element, or a shape that broadcasts to [3], got [1, 3]"),
            (make_prior(3).requires_grad_() * 2, ValueError, "an nn.Parameter or a tensor without gradient, got requ"),
            (nn.Parameter(make_prior(3).to("meta")), ValueError, f"a parameter on {DEVICE}, where mu is, got meta"),
        )
    ],
    *[
        ({"mu_prior": prior}, ValueError, "mu_prior: expected finite values in torch.float32, got inf")
        for prior in (torch.tensor([0, inf, nan]), torch.tensor([1e39]).double())
    ],
    *[
        ({"std_prior": prior}, ValueError, f"std_prior: expected positive finite values in torch.float32, got {value}")
        for prior, value in (
            (torch.tensor([1, nan, 1]), nan),
            (torch.tensor([1, 2, -0.5]), -0.5),
            (torch.tensor([1e-50], dtype=torch.float64), 0.0),
            (nn.Parameter(torch.zeros(1, device=DEVICE)), 0.0),
        )
    ],
]


@parametrize(("arguments", "error", "message"), DISTRIBUTIONS)
def test_distributions(arguments: Any, error: type[Exception], message: str) -> None:
    """Before anything is drawn."""
    state = torch.random.get_rng_state()
    with pytest.raises(error, match="^" + re.escape(message)):
        GaussianDistribution(**{"shape": 3, "device": DEVICE, **arguments})
    assert torch.equal(torch.random.get_rng_state(), state)


one, none = torch.ones(()), torch.ones(0)
FUNCTIONS: Refusals = [
    (lambda: GaussianDistribution(3).sample(2.0), TypeError, "num_samples: expected an integer, got 2.0"),
    (lambda: random.key(1.5), TypeError, "seed: expected an integer, got 1.5"),
    (lambda: random.fold_in(KEYS[0], torch.tensor(2.7)), TypeError, "data: expected one integer, got a tensor of"),
    (lambda: random.fold_in(KEYS[0], KEYS[0]), TypeError, "data: expected one integer, got a tensor of torch.int64"),
    (lambda: random.split([1, 2]), TypeError, r"key: expected a tensor, got \[1, 2\]"),
    (lambda: relative_rho(0), ValueError, "delta: expected a positive finite number, got 0"),
    (lambda: relative_rho(0.1, -1), ValueError, "smallest: expected a positive finite number, got -1"),
    (lambda: elbo_loss(1.0, one, 10), TypeError, "nll: expected a tensor, got 1.0"),
    (lambda: elbo_loss(one, 1.0, 10), TypeError, "log_prob: expected a tensor, got 1.0"),
    (lambda: elbo_loss(torch.ones(2, 8), torch.ones(2), 10), ValueError, r"nll: expected a scalar or .* \[2, 8\]"),
    (lambda: elbo_loss(one, torch.ones(2, 1), 10), ValueError, r"log_prob: expected a scalar .* got shape \[2, 1\]"),
    (lambda: elbo_loss(torch.ones(32), torch.ones(8), 10), ValueError, r"nll: .* samples of log_prob, \[8\], got .*32"),
    (lambda: elbo_loss(one, none, 10), ValueError, "log_prob: expected at least one sample, got none"),
    (lambda: elbo_loss(none, one, 10), ValueError, "nll: expected at least one sample, got none"),
    (lambda: elbo_loss(one, one, 0), ValueError, "num_data: expected a positive finite number, got 0"),
    (lambda: elbo_loss(one, one, -5), ValueError, "num_data: expected a positive finite number, got -5"),
    (lambda: elbo_loss(one, one, nan), ValueError, "num_data: expected a positive finite number, got nan"),
    (lambda: elbo_loss(one, one, None), TypeError, "num_data: expected a number, got None"),
    (lambda: elbo_loss(one, one, INPUTS), TypeError, r"num_data: expected a number, got a tensor of shape \[4, 3\]"),
    (lambda: elbo_loss(one, one, 10, -0.5), ValueError, "kl_weight: expected a non-negative number, got -0.5"),
    (lambda: elbo_loss(one, one, 10, "1"), TypeError, "kl_weight: expected a number, got '1'"),
    *[
        (partial(measure, logits), error, message)
        for measure in (predictive_entropy, mutual_information)
        for logits, error, message in (
            ([1.0], TypeError, "logits: expected a tensor"),
            (torch.ones(2, 3, dtype=torch.int64), TypeError, "logits: expected a floating dtype, got torch.int64"),
            (torch.ones(3), ValueError, r"logits: expected shape \[S, N, C\], .* got \[3\]"),
            (torch.ones(5, 3), ValueError, r"logits: .* got \[5, 3\]; write \[S, 1, C\] for one .* samples, not"),
            (torch.ones(0, 2, 3), ValueError, r"logits: expected shape .* got \[0, 2, 3\]"),
            (torch.ones(3, 2, 0), ValueError, r"logits: expected shape .* got \[3, 2, 0\]"),
        )
    ],
    (
        lambda: mutual_information(make(lambda module, hidden: hidden).eval().predict(INPUTS)),
        TypeError,
        r"logits: .* take the samples: bnn\.predict\(inputs\)\.samples",
    ),
]


@parametrize(("call", "error", "message"), FUNCTIONS)
def test_functions(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + message):
        call()


# What Trainer of transformers does with a model, by the names that it has there.
TRAINER = """if True:
    class Trainer:
        def __init__(self, model, compute_loss_func=None):
            self.model, self.compute_loss_func = model, compute_loss_func

        def compute_loss(self, model, x, return_outputs=False):
            outputs = model(x)
            loss = self.compute_loss_func(outputs) if self.compute_loss_func else outputs[0]
            return (loss, outputs) if return_outputs else loss

        def training_step(self, model, x):
            self.compute_loss(model, x).sum().backward()

        def prediction_step(self, model, x, has_labels=True, prediction_loss_only=False):
            return self.compute_loss(model, x, return_outputs=True) if has_labels else model(x)
"""


class Around(nn.Module):
    """As docs/recipes/trainer.md makes it, with a recomputation in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.bnn = BayesianModule(make_network())

    def forward(self, x: Tensor) -> tuple[Tensor]:
        output, log_prob = checkpoint(self.bnn, x, use_reentrant=False)
        return (output.sum() + log_prob,)


@pytest.fixture
def trainer_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("transformers.trainer")
    exec(TRAINER, vars(module))
    monkeypatch.setitem(sys.modules, "transformers.trainer", module)
    return module


def test_trainer_is_refused_where_it_takes_a_pair_for_the_loss(trainer_module: Any) -> None:
    bnn, x = BayesianModule(make_network()), INPUTS.float()
    bare, with_loss = trainer_module.Trainer(bnn), trainer_module.Trainer(bnn, lambda outputs: outputs[1])
    for model in (bnn, nn.DataParallel(bnn, device_ids=[])):  # between them only torch's own calls
        refused = pytest.raises(
            TypeError, match=r"^Trainer\.\w+: expected a model that gives a loss .*recipes/trainer.md"
        )
        for trainer in (bare, with_loss):
            for has_labels in (True, False):
                with refused:
                    trainer.prediction_step(model, x, has_labels)
        with refused:
            bare.training_step(model, x)
        with refused:
            bare.prediction_step(model, x, prediction_loss_only=True)
        with_loss.training_step(model, x)
        with_loss.prediction_step(model, x, prediction_loss_only=True)


def test_trainer_is_taken_where_something_makes_the_loss(trainer_module: Any) -> None:
    class Own(trainer_module.Trainer):  # type: ignore[misc, name-defined]
        def compute_loss(self, model: nn.Module, x: Tensor, return_outputs: bool = False) -> Any:
            _, outputs = super().compute_loss(model, x, return_outputs=True)
            return (outputs[1], outputs) if return_outputs else outputs[1]

    class Head(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor]:
            return (pair[0].sum() + pair[1],)

    x = INPUTS.float()
    hooked = BayesianModule(make_network())
    hooked.register_forward_hook(lambda module, inputs, pair: Head()(pair))
    bnn = BayesianModule(make_network())
    trainers = [trainer_module.Trainer(model) for model in (Around(), nn.Sequential(bnn, Head()), hooked)]
    for trainer in (*trainers, Own(bnn)):
        trainer.training_step(trainer.model, x)
        trainer.prediction_step(trainer.model, x)
    bnn(x)


def test_generate_is_refused_outside_a_block() -> None:
    class Language(nn.Linear):
        def generate(self) -> Tensor:
            return self(torch.ones(3, device=DEVICE))

    bnn = BayesianModule(Language(3, 2, device=DEVICE))
    with pytest.raises(RuntimeError, match=r"^generate: .*with bnn\.sampled\(\).*recipes/generate.md"):
        bnn.generate()  # type: ignore[operator]
    with bnn.sampled():
        assert bnn.module.generate().shape == (2,)  # type: ignore[operator]
    assert not hasattr(BayesianModule(make_network()), "generate")

    class Own(BayesianModule):
        def generate(self) -> Tensor:
            with self.sampled():
                return self.module.generate()  # type: ignore[operator, no-any-return]

    assert Own(Language(3, 2, device=DEVICE)).generate().shape == (2,)
