"""The library is built once more with g++'s AddressSanitizer, UndefinedBehaviorSanitizer (also for casts of floats
beyond the integers) and libstdc++'s assertions, without the `-fwrapv` that Python's own flags bring, and the suite runs
on it: tests of the kernels and ops, on each instruction set. Every allocation of torch lies between forbidden bytes
then, so that a read or write one element beyond a tensor ends the process with a report; so does one beyond an array on
the stack. Left out are slow tests and those that add no path through our C++: torch.compile, torch.export, operator
checks, distributed processes, examples, benchmark, packaging. torch and Python themselves are not instrumented.

Faults are planted on purpose in a small library of the same flags: if one is not reported, the rest proves nothing.
Leaks are looked for by counting: the bytes that live on the heap after 200 more rounds of every op, where one forgotten
allocation a round would leave 200 bytes at least. The CUDA kernels run too, as C++ on emulated blocks (see
CONTRIBUTING.md), where memory around each array is forbidden. Reads of memory that nothing wrote are
valgrind's: it runs the CPU kernels over each dtype, and the bytes of every result must be defined."""

import subprocess
import sys
from pathlib import Path

from illia_ext import _C
from validation.debian import program
from validation.evidence import Finding, Section
from validation.variants import BUILD, ROOT
from validation.watched import REPORT, Watched

FLAGS = [
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g1",
    "-O1",
    "-fno-wrapv",
    "-D_GLIBCXX_ASSERTIONS",
]
WATCHED = Watched(
    "sanitized",
    FLAGS,
    ["libasan.so", "libubsan.so"],
    "detect_leaks=0:handle_abort=1:print_stacktrace=1:allocator_may_return_null=1",
)

# One thread's arithmetic, memory and errors: what each instruction set runs.
KERNELS = ["forward", "backward", "prior_gradients"]
# No path through our C++ of their own, and minutes of the compiler; or about the library's file and its allocator,
# which a sanitizer changes.
LEFT_OUT = ["compile", "distributed", "export", "opcheck", "faults_jit", "faults_library", "faults_memory"]
LEFT_OUT += ["supply_chain"]
QUICK_KERNELS = ["forward", "backward", "blocks"]

# What the report of each planted fault says.
FAULTS = {
    "read_beyond": "heap-buffer-overflow",
    "write_before": "heap-buffer-overflow",
    "read_freed": "heap-use-after-free",
    "beyond_the_stack": "insufficient space for an object of type 'volatile float'",
    "overflow": "signed integer overflow",
    "shift": "shift exponent",
    "cast": "outside the range of representable values",
    "misaligned": "misaligned address",
    "beyond_a_vector": "Assertion '__n < this->size()' failed",
}
PLANT = """
import ctypes, os, sys, torch
library, tensor = ctypes.CDLL(sys.argv[1]), torch.ones(4)
for name in sys.argv[2:]:
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{name}.txt", os.O_WRONLY | os.O_CREAT), 2)
        getattr(library, name)(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.numel()))
        os._exit(0)
    os.waitpid(child, 0)
    print(child)
"""

ROUNDS = 200
COUNT_BYTES = """
import ctypes, gc, sys, torch
from foreach_cases import make_lists, make_priors
from test_determinism import every_output
from helpers import make_keys
from illia_ext import functional
live = ctypes.CDLL(None).__sanitizer_get_current_allocated_bytes
live.restype = ctypes.c_size_t

def every_op():
    for dtype in (torch.float32, torch.bfloat16):
        every_output(dtype, 1500)
    key = make_keys((1, 2), (3, 4))
    mu, rho = make_lists(torch.float32, torch.device("cpu"))
    x, log_prob = functional.foreach_gaussian_sample_and_log_prob(mu, rho, *make_priors("one for each", mu), key)
    kl = functional.foreach_gaussian_kl_divergence(mu, rho, 0, 1)
    torch.autograd.grad([*x, log_prob, kl], [*mu, *rho], [torch.ones_like(t) for t in (*x, log_prob, kl)])
    for wrong in (rho[0][:2], rho[0].double()):
        try:
            functional.gaussian_sample_and_log_prob(mu[0], wrong, 0, 1, key)
        except (TypeError, ValueError, RuntimeError):
            pass
        else:
            raise AssertionError("a refusal is missing")

def bytes_after(rounds):
    for _ in range(rounds):
        every_op()
    gc.collect()
    return live()

bytes_after(20)
before = bytes_after(1)
print(bytes_after(int(sys.argv[1])) - before)
"""


def planted() -> Finding:
    """Each must leave a file of its process that counts as a report, as all that follows is judged by."""
    library = WATCHED.compile(ROOT / "validation" / "canaries.cpp")
    children = WATCHED.run(PLANT, library, *FAULTS, log="planted").split()
    missed = []
    for (name, words), child in zip(FAULTS.items(), children):
        report = WATCHED.folder / f"planted.{child}"
        counted = report.read_text() if report.exists() else ""
        said = counted + (WATCHED.folder / "tests" / f"{name}.txt").read_text()
        missed += [name] * (REPORT.search(counted) is None or words not in said)
    what = f"faults planted on purpose that are reported: {', '.join(FAULTS)}".replace("_", " ")
    measured = f"{len(FAULTS) - len(missed)} of {len(FAULTS)}" + (f", not {', '.join(missed)}" if missed else "")
    return Finding(what, measured, "all", not missed)


def leaks() -> Finding:
    grown = int(WATCHED.run(COUNT_BYTES, ROUNDS))
    return Finding(
        f"bytes on the heap that {ROUNDS} rounds of every op and refusal leave",
        str(grown),
        f"< {ROUNDS}",
        grown < ROUNDS,
    )


def programs(quick: bool) -> list[Finding]:
    """tests/cpp, the CUDA kernels on the host among them where CUDA's headers are."""
    folder = BUILD / "cpp"
    flags = [flag for flag in FLAGS if not flag.startswith("-O")] + ["-Wno-clobbered"]
    configure = ["cmake", "-S", ROOT, "-B", folder, f"-DCMAKE_CXX_FLAGS={' '.join(flags)}"]
    configure.append(f"-DPython_EXECUTABLE={sys.executable}")
    run_in = {"env": WATCHED.environment() | {"ILLIA_EXT_CUDA": "0", "LD_PRELOAD": ""}, "stdout": subprocess.DEVNULL}
    subprocess.run(configure, check=True, **run_in)
    headers = any((folder / "tests" / "cpp").glob("**/kernels_on_host*"))
    names = ["core_test", *["intrinsics_test", *["cuda_on_host_test", "foreach_on_host_test"] * headers] * (not quick)]
    subprocess.run(["cmake", "--build", folder, "--target", *names], check=True, **run_in)
    findings = []
    for name in names:
        arguments = [ROOT / "tests" / "data" / "philox_known_answers.txt"] * (name == "core_test")
        ended = subprocess.run([folder / "tests" / "cpp" / name, *arguments], **run_in)
        findings.append(Finding(f"tests/cpp/{name}", f"exit code {ended.returncode}", "0", ended.returncode == 0))
    return findings


def undefined() -> list[Finding]:
    """valgrind on the CPU kernels, which knows of each byte whether anyone wrote it."""
    valgrind, environ = program("valgrind", "valgrind")
    usr = Path(valgrind).parents[1]
    environ["VALGRIND_LIB"] = str(usr / "libexec" / "valgrind")
    target = WATCHED.folder / "undefined"
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-g1",
        "-ffp-contract=off",
        "-I",
        ROOT / "csrc",
        "-idirafter",
        usr / "include",
    ]
    sources = [
        ROOT / "validation" / "undefined.cpp",
        *(ROOT / "csrc" / "cpu" / f"gaussian_{name}.cpp" for name in ("base", "avx2")),
    ]
    subprocess.run([*command, *sources, "-o", target], check=True)

    def watch(*arguments: str) -> tuple[str, int]:
        """How many results are undefined, and the errors of memory."""
        run = [valgrind, "-q", "--error-exitcode=9", target, *arguments]
        ended = subprocess.run(run, env=environ, stdout=subprocess.PIPE, text=True)
        return ended.stdout.strip(), ended.returncode

    (count, code), (planted_count, planted_code) = watch(), watch("fault")
    return [
        Finding(
            "results of the CPU kernels with a byte that nobody wrote; exit code of valgrind",
            f"{count}; {code}",
            "0; 0",
            count.startswith("0 of ") and code == 0,
        ),
        Finding(
            "the same with an input left unwritten on purpose",
            f"{planted_count}; {planted_code}",
            "> 0; 9",
            not planted_count.startswith("0 of ") and planted_code == 9,
        ),
    ]


def collect(quick: bool) -> Section:
    WATCHED.build()
    findings = [planted()]
    instruction_sets = ["base", "avx2", "avx512"]
    instruction_sets = instruction_sets[: instruction_sets.index(_C.cpu_capability()) + 1]
    *lesser, best = [_C.cpu_capability()] if quick else instruction_sets
    for name in lesser:
        findings.append(WATCHED.finding(f"tests of the kernels with {name}", KERNELS, ILLIA_EXT_CPU_CAPABILITY=name))
    if quick:
        findings.append(WATCHED.finding(f"tests of the kernels with {best}", QUICK_KERNELS))
    else:
        findings.append(WATCHED.finding(f"tests of kernels and ops with {best}", WATCHED.tests(but=LEFT_OUT)))
        findings.append(leaks())
    findings += [*undefined(), *programs(quick)]
    findings.append(WATCHED.reports("reports of the sanitizers, in all of these"))
    no_cuda = not quick and not any("cuda_on_host_test" in finding.what for finding in findings)
    return Section("Sanitizers", __doc__ + " This machine lacks CUDA's headers, and so that run." * no_cuda, findings)
