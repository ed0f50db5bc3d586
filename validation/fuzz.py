"""libFuzzer, by way of atheris, makes calls of every op out of bytes: dtypes of all kinds, shapes, strides, storage
offsets, devices, keys with wrong words, dtypes and shapes, priors, lists, blocks, masks, None, tensors larger than any
memory. It is led by the branches of `validation/fuzz_rules.py`, which says once more, apart from the library's checks,
what the documentation accepts, so it finds its way into every refusal.

Of each call is asked: does the op refuse exactly what the rules refuse, by an exception of an expected type whose
message begins with the name of an argument that is wrong (or is a sentence of torch's own dispatcher)? Are the
arguments, and the memory around and between their elements, what they were? And does the process live? Results that the
reference forms too (whole samples and densities, without gradients) have its shapes and dtypes, and are finite where
the values are moderate. The number of calls is fixed; which calls they are differs from run to run, for libFuzzer is
led by more than its seed.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from validation.evidence import Finding, Section, Table
from validation.variants import ROOT

__all__ = ["collect", "fuzz"]

TITLE = "Fuzzing the op boundary"
KINDS = (
    "nonsense accepted",
    "valid arguments refused",
    "refused without naming the argument",
    "another exception than expected",
    "an argument's memory changed",
    "an output of another kind",
    "another shape or dtype than the reference",
    "not finite",
)


def fuzz(calls: int, environ: Mapping[str, str] = os.environ) -> tuple[str, dict]:
    """What libFuzzer printed, and the ledger of `validation/fuzz_target.py`; `environ` may name another library, as
    validation.variants.environment does."""
    path = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), str(ROOT)]))
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder, "ledger.json")
        flags = ["-seed=7", f"-runs={calls}", "-max_len=512", "-len_control=0", "-rss_limit_mb=6000"]
        command = [sys.executable, "-m", "validation.fuzz_target", str(ledger), *flags, f"-artifact_prefix={folder}/"]
        result = subprocess.run(
            command, cwd=folder, env={**environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
        counted = json.loads(ledger.read_text()) if ledger.exists() else {"counts": {}, "failures": {}}
    return f"{result.stdout}{result.stderr}\nexit code {result.returncode}", counted


def collect(quick: bool) -> Section:
    if find_spec("atheris") is None:
        return Section(
            TITLE,
            f"{__doc__}\nNot run here: no atheris for Python {platform.python_version()} on "
            f"{platform.machine()}; it comes ready for CPython on x86-64 alone.",
        )
    calls = 8_000 if quick else 40_000
    output, ledger = fuzz(calls)
    counts, failures = ledger["counts"], ledger["failures"]
    print(output[-3000:], json.dumps(ledger, indent=1), sep="\n")
    done = re.search(r"Done (\d+) runs in (\d+) second", output)
    edges = re.findall(r"cov: (\d+)", output)
    lives = done is not None and int(done[1]) == calls and output.endswith("exit code 0")
    measured = done[0] if done else output[-300:]
    findings = [Finding("the process lives", measured, f"{calls} runs, exit code 0", lives)]
    for kind in KINDS:
        count = counts.get(kind, 0)
        measured = f"{count} calls: {failures[kind]}" if count else "0 calls"
        findings.append(Finding(kind, measured, "0 calls", lives and count == 0))
    rows = [[what, str(count)] for what, count in sorted(counts.items()) if what not in KINDS]
    rows.append(["edges of the rules covered", edges[-1] if edges else "unknown"])
    return Section(TITLE, __doc__, findings, [Table("Calls made", ["what", "how many"], rows)])
