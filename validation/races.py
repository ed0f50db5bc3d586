"""The library is built once more with g++'s ThreadSanitizer, which reports two threads at one element of memory, one of
them writing, where nothing orders them, whether or not they met in this run. It sees what our library reads and writes
and the locks of Python; torch and Python are not instrumented.

First the library's own threads: each parallel loop of a kernel runs in three threads that the sanitizer sees, instead
of OpenMP's, whose barriers it does not know; neighbouring chunks lie in different threads. The tests of the kernels run
so. Then the callers: 16 Python threads call every op at once, forward and backward, on the same parameters and keys,
and each result must have the bits that one thread gets alone. A race planted in the same loop, and one planted between
two Python threads, must be reported: the sanitizer is not silent for want of sight."""

from pathlib import Path

from validation.evidence import Finding, Section
from validation.variants import ROOT
from validation.watched import Watched

FLAGS = ["-fsanitize=thread", "-fno-omit-frame-pointer", "-g1", "-O1"]
# ignore_noninstrumented_modules: torch's memcpy and malloc are not ours to judge
OPTIONS = "ignore_noninstrumented_modules=1:exitcode=0"
WATCHED = Watched("threads", FLAGS, ["libtsan.so"], OPTIONS)
KERNELS = ["forward", "foreach", "prior_gradients", "stick_the_landing"]

PLANT = """
import ctypes, sys, threading, torch
race, tensor = getattr(ctypes.CDLL(None), sys.argv[1]), torch.zeros(4)
address = ctypes.c_void_p(tensor.data_ptr())
if sys.argv[1] == "race_in_a_loop":
    race(address)
else:
    threads = [threading.Thread(target=race, args=[address]) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""

CALLERS, ROUNDS = 16, 2
CALL = """
import ctypes, sys, threading, torch
from test_determinism import digest, every_output
from illia_ext import functional
from foreach_cases import make_lists, make_priors
from helpers import make_keys
mu, rho = make_lists(torch.float32, torch.device("cpu"))
key, priors = make_keys((1, 2), (3, 4)), make_priors("one for each", mu)

def every_op():
    x, log_prob = functional.foreach_gaussian_sample_and_log_prob(mu, rho, *priors, key)
    kl = functional.foreach_gaussian_kl_divergence(mu, rho, *priors)
    outputs = [*x, log_prob, kl]
    grads = torch.autograd.grad(outputs, [*mu, *rho], [torch.ones_like(output) for output in outputs])
    return digest([*outputs, *grads] + every_output(torch.float32, 3000) + every_output(torch.bfloat16, 1025))

threads, rounds = map(int, sys.argv[1:])
start, results = threading.Barrier(threads), []

def call():
    start.wait()
    for _ in range(rounds):
        results.append(every_op())

callers = [threading.Thread(target=call) for _ in range(threads)]
for caller in callers: caller.start()
for caller in callers: caller.join()
expected = every_op()
print(sum(result == expected for result in results), ctypes.CDLL(None).count_loops(), ctypes.CDLL(None).count_at_once())
"""


def planted(loop: Path) -> Finding:
    """Each in a process of its own, as all else is run."""
    missed = []
    for name in ("race_in_a_loop", "race_of_callers"):
        WATCHED.run(PLANT, name, before=[loop], log=name)
        said = "".join(path.read_text() for path in WATCHED.folder.glob(f"{name}.*"))
        missed += [name] * ("WARNING: ThreadSanitizer: data race" not in said)
    what = "planted races that are reported: in the parallel loop, between Python threads"
    return Finding(what, f"{2 - len(missed)} of 2", "all", not missed)


def collect(quick: bool) -> Section:
    WATCHED.build()
    loop = WATCHED.compile(ROOT / "validation" / "threads.cpp")
    findings = [planted(loop)]
    if not quick:
        findings.append(WATCHED.finding("tests of the kernels, each loop in three threads", KERNELS, before=[loop]))
    calls = CALLERS * ROUNDS
    equal, loops, at_once = map(int, WATCHED.run(CALL, CALLERS, ROUNDS, before=[loop]).split())
    findings += [
        Finding(
            f"results of {CALLERS} threads, {ROUNDS} rounds of every op each, with the bits of one thread alone",
            f"{equal} of {calls}",
            "all",
            equal == calls,
        ),
        Finding(f"parallel loops under way at once, of {loops}", f"up to {at_once}", ">= 2", at_once >= 2),
        WATCHED.reports("races that ThreadSanitizer reports, in all of these"),
    ]
    return Section("Races", __doc__, findings)
