"""Every op forward and backward, when memory runs out and how much they keep of it: see test_faults_memory.py."""

import ctypes
import gc
import itertools
import os
import resource
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from illia_ext import _C, BayesianModule
from illia_ext import functional as F
from illia_ext.random import key, split

__all__ = ["ROUNDS", "bytes_left_behind", "fail_each_allocation", "limit_memory", "make_ops"]

Op = Callable[[], Sequence[Tensor]]
_Outcome = tuple[Sequence[Tensor] | None, str]  # the result, or what the error says
ROUNDS = 200  # of all ops, which must leave no memory behind


def _with_grads(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs, and gradients for a gradient of ones to each."""
    grads = torch.autograd.grad(outputs, inputs, [torch.ones_like(output) for output in outputs])
    return [*outputs, *grads]


class Scale(nn.Module):
    """Multiplies element by element, which has the same bits for every number of threads; matrix products need not."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(numel))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight


def make_ops(numel: int, num_tensors: int) -> dict[str, Op]:
    torch.manual_seed(0)

    def parameters(*size: int) -> tuple[Tensor, Tensor]:
        return torch.randn(size).requires_grad_(), torch.randn(size).requires_grad_()

    one, keys, ones = key(3), split(key(3), 3), torch.ones(numel)
    mu, rho = parameters(numel)
    x, mu_prior = parameters(numel)
    std_prior = torch.rand(numel).add_(0.5).requires_grad_()
    strided, strided_rho = (parameter.reshape(-1, 4).t() for parameter in parameters(numel // 4 * 4))
    pairs = [parameters(numel // num_tensors) for _ in range(num_tensors)]
    mus, rhos = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    priors = [mu, rho, mu_prior, std_prior]
    net = BayesianModule(Scale(numel), std_prior=1.0)
    weights = list(net.parameters())  # during a call others may see samples in their place

    def foreach(of_keys: Tensor) -> list[Tensor]:
        xs, log_prob = F.foreach_gaussian_sample_and_log_prob(mus, rhos, 0.0, 1.0, of_keys)
        return _with_grads([*xs, log_prob], [*mus, *rhos])

    def module() -> list[Tensor]:
        return _with_grads(net(ones, key=one), weights)

    return {
        "standard_normal": lambda: [torch.ops.illia_ext.standard_normal(one, [numel], dtype=torch.float32)],
        "sample": lambda: _with_grads([F.gaussian_sample(mu, rho, one)], [mu, rho]),
        "sample in bfloat16": lambda: _with_grads([F.gaussian_sample(mu, rho, one, torch.bfloat16)], [mu, rho]),
        "three samples": lambda: _with_grads(F.gaussian_sample_and_log_prob(mu, rho, 0.0, 1.0, keys), [mu, rho]),
        "strided": lambda: _with_grads(
            F.gaussian_sample_and_log_prob(strided, strided_rho, 0.0, 1.0, one), [strided, strided_rho]
        ),
        "priors": lambda: _with_grads(F.gaussian_sample_and_log_prob(*priors, one), priors),
        "log_prob": lambda: _with_grads([F.gaussian_log_prob(x, *priors)], [x, *priors]),
        "kl_divergence": lambda: _with_grads([F.gaussian_kl_divergence(*priors)], priors),
        "foreach": lambda: foreach(one),
        "foreach, three samples": lambda: foreach(keys),
        "foreach kl_divergence": lambda: _with_grads(
            [F.foreach_gaussian_kl_divergence(mus, rhos, 0.0, 1.0)], [*mus, *rhos]
        ),
        "module": module,
    }


def library_range() -> tuple[int, int]:
    """Where the library is mapped."""
    with open("/proc/self/maps") as maps:
        lines = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(os.path.realpath(_C.__file__))]
    return int(lines[0][0], 16), int(lines[-1][1], 16)


def _outcome(op: Op) -> _Outcome:
    try:
        return op(), ""
    except (MemoryError, RuntimeError, TypeError, ValueError) as error:
        return None, f"{type(error).__name__}: {error}"


def _errors(numel: int, attempt: Callable[[int, Op], _Outcome]) -> dict[str, list[str]]:
    """What each op says in attempt 1, 2 and so on, until one succeeds; after each it must give its numbers."""
    said: dict[str, list[str]] = {}
    for name, op in make_ops(numel, num_tensors=3).items():
        expected, said[name] = op(), []
        for n in itertools.count(1):
            result, error = attempt(n, op)
            for got in [op()] if result is None else [op(), result]:
                assert all(map(torch.equal, got, expected)), f"{name}: other numbers after attempt {n}"
            if result is not None:
                break
            said[name].append(error)
    return said


def fail_each_allocation() -> dict[str, list[str]]:
    """What each op says when its first allocation fails, its second, and so on."""
    allocator = ctypes.CDLL(None)
    allocator.watch_library(*map(ctypes.c_size_t, library_range()))

    def attempt(n: int, op: Op) -> _Outcome:
        allocator.let_fail(ctypes.c_long(n))
        outcome = _outcome(op)
        has_failed = bool(allocator.has_failed())
        allocator.let_fail(ctypes.c_long(0))
        assert has_failed is (outcome[0] is None), f"allocation {n} failed in silence"
        return outcome

    return _errors(200, attempt)


def limit_memory(numel: int) -> dict[str, list[str]]:
    """What each op says under limits of memory that rise until it runs."""
    step = numel * 4 // 3  # thrice a tensor: each allocation of one is the first to fail under some limit

    def attempt(n: int, op: Op) -> _Outcome:
        with open("/proc/self/statm") as sizes:
            in_use = int(sizes.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + (n - 1) * step, resource.RLIM_INFINITY))
        outcome = _outcome(op)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return outcome

    return _errors(numel, attempt)


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


def bytes_left_behind(leak: int) -> int:
    """By how much the bytes that malloc has given out grow in ROUNDS rounds of every op and of some refusals.

    Each round also allocates `leak` bytes that nobody frees, unless that is 0.
    """
    allocator = ctypes.CDLL(None)
    allocator.mallinfo2.restype = _Mallinfo
    ops = make_ops(numel=200, num_tensors=3)
    mu, rho, one = torch.zeros(5), torch.zeros(5), key(3)

    def bytes_after(rounds: int) -> int:
        for _ in range(rounds):
            for op in ops.values():
                op()
            for wrong in (rho[:2], rho.double()):
                refused = _outcome(partial(F.gaussian_sample_and_log_prob, mu, wrong, 0.0, 1.0, one))
                assert refused[0] is None, "a refusal is missing"
            if leak:
                allocator.malloc(leak)
        gc.collect()
        info = allocator.mallinfo2()
        return int(info.uordblks + info.hblkhd)

    bytes_after(20)
    before = bytes_after(1)
    return bytes_after(ROUNDS) - before
