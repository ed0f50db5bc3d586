"""Reads the machine code of a built library: `python tools/check_cuda_code.py [illia_ext/_C*.so]`.

Fails when a kernel spills or keeps anything in local memory, on any architecture, or when a kernel over tiles lacks
128-bit loads or stores of what it reads and writes by vectors. Prints registers, and instructions an element, to be
held against what a GPU issues in the time that its memory takes (CONTRIBUTING.md).

Instructions are those from the first vector load to the end of the loop over samples, all branches counted: one pass
over a full tile with one sample, a little from above. Needs cuobjdump and nvdisasm, on PATH or from
`pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# What each kernel moves by vectors of 128 bits, and how many elements a thread holds: float and half, double.
FORWARD, BACKWARD = (16, 8), (8, 4)
KERNELS = {
    "standard_normal_kernel": ("S", FORWARD),
    "sample_kernel": ("LS", FORWARD),
    "sample_backward_kernel": ("LS", BACKWARD),
    "log_prob_kernel": ("L", FORWARD),
    "log_prob_backward_kernel": ("LS", BACKWARD),
    "kl_divergence_kernel": ("L", FORWARD),
    "kl_divergence_backward_kernel": ("LS", BACKWARD),
}


def run(*command: str, stdin: str | None = None) -> str:
    # cuobjdump looks for nvdisasm on PATH; pip puts both into a folder of their own
    wheels = [str(folder) for folder in Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin")]
    path = os.pathsep.join([os.environ["PATH"], *wheels])
    tool = shutil.which(command[0], path=path)
    if tool is None:
        sys.exit(f"{command[0]} is not on PATH: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, or binutils")
    environ = {**os.environ, "PATH": path}
    return subprocess.run(
        [tool, *command[1:]], input=stdin, env=environ, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def resources(library: str) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Architecture, kernel and its usage: REG, STACK, LOCAL and others."""
    architecture = kernel = ""
    for line in run("cuobjdump", "--dump-resource-usage", library).splitlines():
        if found := re.match(r"arch = (sm_\d+)", line):
            architecture = found[1]
        elif found := re.match(r" *Function (\w+):", line):
            kernel = found[1]
        elif kernel and "REG:" in line:
            yield architecture, kernel, {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", line)}


def machine_code(library: str, architecture: str) -> dict[str, list[tuple[int, str]]]:
    """Address and instruction, for each kernel."""
    code: dict[str, list[tuple[int, str]]] = {}
    lines: list[tuple[int, str]] = []
    for line in run("cuobjdump", "--dump-sass", "--gpu-architecture", architecture, library).splitlines():
        if found := re.match(r"\s+Function : (\w+)", line):
            lines = code.setdefault(found[1], [])
        elif found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", line):
            lines.append((int(found[1], 16), found[2]))
    return code


def main_loop(lines: list[tuple[int, str]]) -> list[str]:
    """Instructions of one pass over a full tile; none without vector accesses, by which it is found."""
    vectors = [at for at, text in lines if re.search(r"LDG\.E\.128|STG\.E\.(128|64)", text)]
    if not vectors:
        return []
    branches = [(at, int(found[1], 16)) for at, text in lines if (found := re.search(r"BRA.* 0x([0-9a-f]+)", text))]
    end, target = next((at, to) for at, to in branches if to <= at and at > max(vectors))
    wide_loads = [at for at, text in lines if "LDG.E.128" in text]
    begin = min(wide_loads) if wide_loads else target
    code = {at: text for at, text in lines if begin <= at <= end}

    def philox(first: int, last: int) -> bool:
        return sum("IMAD.WIDE.U32" in code.get(at, "") for at in range(first, last, 16)) > 20

    for at, to in branches:  # over a next sample, or its Philox words, where there is none
        if at in code and at < to <= end and philox(begin, at) and philox(at, to):
            code = {place: text for place, text in code.items() if not at < place < to}
    return list(code.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = sorted(map(str, Path("illia_ext").glob("_C*.so")))
    parser.add_argument("library", nargs="?", default=built[0] if built else None)
    parser.add_argument("--arch", default="sm_90", help="the architecture of the table (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.library is None:
        parser.error("no library in illia_ext/: name one")

    usages = list(resources(arguments.library))
    faults = [
        f"{kernel} for {architecture}: {usage['STACK']} bytes of stack, {usage['LOCAL']} of local memory"
        for architecture, kernel, usage in usages
        if usage["STACK"] or usage["LOCAL"]
    ]
    code = machine_code(arguments.library, arguments.arch)
    registers = {kernel: usage["REG"] for architecture, kernel, usage in usages if architecture == arguments.arch}
    if not registers:
        sys.exit(f"{arguments.library} holds no kernel for {arguments.arch}")
    names = dict(zip(registers, run("c++filt", stdin="\n".join(registers)).splitlines()))

    print(f"{'kernel, ' + arguments.arch:68} {'registers':>9} {'instructions an element':>24}")
    for mangled, name in sorted(names.items(), key=lambda item: item[1]):
        short = (
            re.sub(r"void |illia::cuda::|\(.*", "", name).replace("__nv_bfloat16", "bfloat16").replace("__half", "half")
        )
        kernel = short.split("<")[0]
        count = ""
        if kernel in KERNELS:
            moved, elements = KERNELS[kernel]
            loop = main_loop(code[mangled])
            text = "\n".join(instruction for _, instruction in code[mangled])
            narrowed = re.search(r"<float, (half|bfloat16)", short)  # four elements of 16 bits: 64 bits of x
            if "L" in moved and "LDG.E.128" not in text:
                faults.append(f"{short}: no 128-bit load")
            if "S" in moved and not re.search(r"STG\.E\.(128|64)" if narrowed else r"STG\.E\.128", text):
                faults.append(f"{short}: no 128-bit store")
            count = f"{len(loop) / elements['double' in short]:.1f}"
        print(f"{short:68} {registers[mangled]:9} {count:>24}")
    print(*faults, sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
