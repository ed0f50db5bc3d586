"""What the fuzzer runs: `python -m validation.fuzz_target LEDGER [FLAGS OF LIBFUZZER]`. See validation/fuzz.py."""

import json
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import atheris
import torch
from torch import Tensor

import illia_ext  # noqa: F401  (registers the ops)
from illia_ext import reference
from illia_ext._ops.fake import op

with atheris.instrument_imports(include=["validation.fuzz_calls", "validation.fuzz_rules"]):
    from validation.fuzz_calls import HUGE, Call
    from validation.fuzz_rules import FLOATS, Rules

# Sentences of torch's own, before our code or beside it.
TORCHS_OWN = re.compile(
    r"Could not run 'illia_ext::|Expected a value of type|There were no tensor arguments|Not yet supported ScalarType|"
    r"numel: integer multiplication overflow|Trying to create tensor with negative dimension"
)
NO_MEMORY = re.compile(
    r"out of memory: cannot allocate a|DefaultCPUAllocator: can't allocate memory|Storage size calculation overflowed"
)
EXPECTED = (RuntimeError, TypeError, ValueError, NotImplementedError)


class Ledger:
    """Counts, and of each kind of failure the first call; written at a failure and every 100 calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, str] = {}

    def fail(self, kind: str, call: Call, why: Any) -> None:
        self.counts[kind] += 1
        if kind not in self.failures:
            self.failures[kind] = f"{call.name}: {why}; arguments {describe(call.arguments)}"
            self.write()

    def write(self) -> None:
        self.path.write_text(json.dumps({"counts": self.counts, "failures": self.failures}))


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} strides {value.stride()} on {value.device}"
    if isinstance(value, dict):
        return ", ".join(f"{name}={describe(each)}" for name, each in value.items())
    return f"[{', '.join(map(describe, value))}]" if isinstance(value, (list, tuple)) else repr(value)


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for each in value for t in tensors_of(each)] if isinstance(value, (list, tuple)) else []


LEDGER = Ledger(Path(sys.argv[1]))


def run(data: bytes) -> None:
    # Numbers are read from the end. Where libFuzzer's bytes are used up, some that follow from them go on: nothing in
    # a call is then left at its first choice.
    call = Call(atheris.FuzzedDataProvider(random.Random(data).randbytes(512) + data))
    rules = Rules(call.arguments)
    LEDGER.counts["calls"] += 1
    inputs = tensors_of(list(call.arguments.values()))
    huge = any(t.numel() >= HUGE for t in inputs) or any(n >= HUGE for n in call.arguments.get("size", ()))
    try:
        outputs = op(call.name)(**call.arguments)
    except EXPECTED as error:
        LEDGER.counts["refused"] += 1
        check_refusal(call, rules, str(error), huge)
    except BaseException as error:
        LEDGER.fail("another exception than expected", call, repr(error)[:300])
    else:
        LEDGER.counts["accepted"] += 1
        if rules.wrong or rules.parser:
            LEDGER.fail("nonsense accepted", call, f"expected a refusal of {sorted(rules.wrong)}")
        elif not rules.meta and not huge:
            check_outputs(call, tensors_of(outputs))
    for memory, before in zip(call.memory, call.before):
        if not memory.is_meta and not torch.equal(memory.view(torch.uint8), before):
            LEDGER.fail("an argument's memory changed", call, "")
    if LEDGER.counts["calls"] % 100 == 0:
        LEDGER.write()


def check_refusal(call: Call, rules: Rules, message: str, huge: bool) -> None:
    culprits = rules.wrong | rules.left
    named = re.match(r"(?:tensor \d+: )?(\w+): ", message)
    if named and named[1] in culprits:
        return
    if rules.meta and culprits and " expected to be on the device of " in message:
        return  # of several devices, which argument is on the wrong one?
    if rules.parser:
        LEDGER.counts["refused by torch itself: None in a list"] += 1
        return
    torchs_own = TORCHS_OWN.search(message)
    if torchs_own and culprits:
        LEDGER.counts[f"refused by torch itself: {torchs_own[0]}"] += 1
        return
    if huge and NO_MEMORY.search(message):
        LEDGER.counts["refused for want of memory"] += 1
        return
    kind = "refused without naming the argument" if culprits else "valid arguments refused"
    LEDGER.fail(kind, call, f"{sorted(culprits)} are wrong, the message is {message[:200]!r}")


def check_outputs(call: Call, outputs: list[Tensor]) -> None:
    a = call.arguments
    for output in outputs:
        if not output.is_contiguous() or output.device.type != "cpu" or output.dtype not in FLOATS:
            LEDGER.fail("an output of another kind", call, describe(output))
    function = getattr(reference, call.name, None)
    if function is None or any(name in a for name in ("full_size", "origin")):
        return
    try:
        expected = tensors_of(function(**a))
    except Exception as error:  # the plain formulas want one dtype, or a matrix library lacks it
        LEDGER.counts[f"no reference: {type(error).__name__}"] += 1
        return
    LEDGER.counts["compared"] += 1
    if len(outputs) != len(expected):
        LEDGER.fail("another shape or dtype than the reference", call, f"{len(outputs)} tensors, not {len(expected)}")
    for ours, theirs in zip(outputs, expected):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            LEDGER.fail("another shape or dtype than the reference", call, f"{describe(ours)}, {describe(theirs)}")
        elif call.moderate and not ours.isfinite().all():
            LEDGER.fail("not finite", call, ours)


def main() -> None:
    atheris.instrument_func(run)
    atheris.instrument_func(check_refusal)
    torch.set_num_threads(1)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
