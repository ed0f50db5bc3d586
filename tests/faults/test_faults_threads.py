"""Many threads, a fork after threads were used, and an interruption: the numbers of a quiet process, and no hang.

test_processes.py has children that use one thread, as workers of a DataLoader do.
"""

import os
import traceback
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from fault_ops import make_ops
from helpers import end, make_key, run_python, same_bits

from illia_ext import functional as F

pytestmark = pytest.mark.usefixtures("cpu", "two_threads")
NUM_THREADS = 16


@pytest.mark.parametrize("sets_num_threads", [False, True])
@pytest.mark.parametrize("numel", [1000, 100_000])
def test_sixteen_threads_at_once(numel: int, sets_num_threads: bool) -> None:
    """Every op forward and backward, on tensors that all threads share and on a thread's own."""
    shared = make_ops(numel, num_tensors=3)
    expected = {name: op() for name, op in shared.items()}
    barrier = Barrier(NUM_THREADS)
    own = [make_ops(numel, num_tensors=3) if thread % 2 else shared for thread in range(NUM_THREADS)]

    def compare(thread: int) -> int:
        names = list(expected)
        barrier.wait()
        for turn in range(len(names)):
            name = names[(thread + turn) % len(names)]
            if sets_num_threads:
                torch.set_num_threads(1 + (thread + turn) % 3)
            assert all(map(same_bits, own[thread][name](), expected[name])), name
        return len(names)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        calls = sum(pool.map(compare, range(NUM_THREADS)))
    assert calls == NUM_THREADS * len(expected)


def test_a_forked_child_does_not_wait_for_lost_threads() -> None:
    """Where torch's own ops would wait for ever for OpenMP's threads; so all but the ops under test is made before."""
    sizes = (0, 5, 16 * 1024, 17 * 1024, 256 * 1024 + 777, 2**22)
    key, one = make_key(3), torch.ones(())
    inputs = {numel: [torch.randn(numel).requires_grad_() for _ in range(2)] for numel in sizes}
    grads = {numel: torch.ones(numel) for numel in sizes}

    def results() -> list[bytes]:
        tensors = []
        for numel, (mu, rho) in inputs.items():
            x, log_prob = F.gaussian_sample_and_log_prob(mu, rho, 0.0, 1.0, key)
            tensors += [x, log_prob, *torch.autograd.grad([x, log_prob], [mu, rho], [grads[numel], one])]
            kl_divergence = F.foreach_gaussian_kl_divergence([mu, mu], [rho, rho], 0.0, 1.0)
            tensors += [kl_divergence, torch.ops.illia_ext.standard_normal(key, [numel], dtype=torch.float32)]
        return [tensor.detach().numpy().tobytes() for tensor in tensors]

    expected = results()

    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if results() == expected else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    assert end(child) == 0
    assert results() == expected


INTERRUPTED = """if True:
    import os, signal, threading, time, torch
    from illia_ext.random import key

    def draw(numel):
        return torch.ops.illia_ext.standard_normal(key(3), [numel], dtype=torch.float32)

    expected, begin = draw(1000), time.monotonic()
    draw(10**7)
    half = (time.monotonic() - begin) / 2
    timer = threading.Timer(half, os.kill, (os.getpid(), signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell ignores it
    try:
        timer.start()
        while True:
            draw(10**7)
    except KeyboardInterrupt:
        assert torch.equal(draw(1000), expected)
"""


def test_an_interruption_waits_for_the_call() -> None:
    """An op does not ask for signals: Python raises KeyboardInterrupt once it has returned."""
    result = run_python(INTERRUPTED, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
