"""Reads the machine code of a built library: `python tools/check_cuda_code.py [illia_ext/_C*.so]`.

Fails when a kernel spills or keeps anything in local memory, on any architecture, when a plain kernel over tiles has
fewer vector accesses than its arrays take, or when it has parameters of 16 bits and waits for vector loads of a tile
before it has issued the others (wider ones wait for memory anyway). Prints registers, and instructions an element, to
be held against what a GPU issues in the time that its memory takes (CONTRIBUTING.md).

Instructions are those from the first load of an element to the end of the loop over samples, all branches counted but
for what a block does once: one pass over a full tile with one sample, a little from above. General kernels have
branches for all that they offer, and one draw for as many elements as a Philox block has normals. Needs cuobjdump and
nvdisasm, on PATH or from `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`.
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
from typing import NamedTuple

# How many elements a thread holds, of 4 or 2 bytes and of 8, and of how many arrays where the kernel is plain:
# parameters loaded and stored, samples loaded and stored. A backward kernel loads the first sample and, in its loop,
# the next.
FORWARD, BACKWARD, GENERAL = (16, 4), (8, 4), (4, 2)
KERNELS = {
    "standard_normal_kernel": (FORWARD, 0, 1, 0, 0),
    "sample_kernel": (FORWARD, 2, 0, 0, 1),
    "sample_backward_kernel": (BACKWARD, 2, 2, 2, 0),
    "log_prob_kernel": (FORWARD, 2, 0, 1, 0),
    "log_prob_backward_kernel": (BACKWARD, 2, 2, 2, 1),
    "kl_divergence_kernel": (FORWARD, 2, 0, 0, 0),
    "kl_divergence_backward_kernel": (BACKWARD, 2, 2, 0, 0),
}
KERNELS |= {f"foreach_{name}": arrays for name, arrays in KERNELS.items()}
VECTOR, ELEMENT = r"LDG\.E\.128|STG\.E\.(128|64)", r"LDG\.E.*\.CONSTANT|STG\.E"
WIDTHS = {"float": 4, "double": 8, "half": 2, "bfloat16": 2}


def expected_accesses(kernel: str, types: list[str]) -> dict[str, int]:
    """Vector accesses of one thread for a full tile: 128 bits of parameters, and as many elements of a sample."""
    elements, loaded, stored, samples_loaded, samples_stored = KERNELS[kernel]
    width = WIDTHS[types[0]]
    vectors = elements[types[0] == "double"] * width // 16
    bits = 128 * WIDTHS[types[1 if types[1:] and types[1] in WIDTHS else 0]] // width
    loaded -= "sample_backward_kernel" in kernel and "false" in types  # mu is not read
    counts = {"LDG.E.128": loaded * vectors, "STG.E.128": stored * vectors}
    for access, arrays in ((f"LDG.E.{bits}.CONSTANT", samples_loaded), (f"STG.E.{bits}", samples_stored)):
        access = access.replace(".128.CONSTANT", ".128")
        counts[access] = counts.get(access, 0) + arrays * vectors
    return {access: count for access, count in counts.items() if count}


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


class Instruction(NamedTuple):
    address: int
    text: str
    control: int  # the upper 64 of its 128 bits

    @property
    def barrier(self) -> int | None:
        """The scoreboard, one of six, that its result sets: in bits 110 to 112."""
        number = self.control >> 46 & 7
        return number if number < 6 else None

    def waits_for(self, barrier: int) -> bool:
        """By bits 116 to 121."""
        return bool(self.control >> 52 >> barrier & 1)


def machine_code(library: str, architecture: str) -> dict[str, list[Instruction]]:
    """Of each kernel."""
    code: dict[str, list[Instruction]] = {}
    lines: list[Instruction] = []
    pattern = r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);.*\n\s+/\* 0x([0-9a-f]{16}) \*/|\s+Function : (\w+)"
    for found in re.finditer(pattern, run("cuobjdump", "--dump-sass", "--gpu-architecture", architecture, library)):
        if found[4]:
            lines = code.setdefault(found[4], [])
        else:
            lines.append(Instruction(int(found[1], 16), found[2], int(found[3], 16)))
    return code


def waits_between_loads(lines: list[Instruction], kernel: str, types: list[str]) -> list[str]:
    """Instructions between the first vector load of a full tile and the last that wait for one of them.

    Loads are those of the parameters and, in a backward kernel, of the first sample.
    """
    elements, loaded, _, samples_loaded, _ = KERNELS[kernel]
    widths = [WIDTHS[name] for name in types if name in WIDTHS]
    vectors = elements[types[0] == "double"] * widths[0] // 16
    loaded -= "sample_backward_kernel" in kernel and "false" in types  # mu is not read
    count = (loaded + samples_loaded // 2) * vectors
    access = rf"LDG\.E\.(128|{128 * widths[-1] // widths[0]})\.CONSTANT"
    loads = [place for place, line in enumerate(lines) if re.search(access, line.text)][:count]
    waits, pending = [], set()
    for place in range(loads[0], loads[-1] + 1) if loads else ():
        line = lines[place]
        waits += [f"{line.address:x}: {line.text}"] * any(map(line.waits_for, pending))
        if place in loads:
            pending.add(line.barrier)
    return waits


def main_loop(lines: list[Instruction], access: str) -> list[str]:
    """Instructions of one pass over a full tile; none without an `access` to its elements, by which it is found."""
    accesses = [at for at, text, _ in lines if re.search(access, text)]
    if not accesses:
        return []
    branches = [
        (at, int(found[1], 16)) for at, text, _ in lines if (found := re.search(r"BRA(?!\.DIV).* 0x([0-9a-f]+)", text))
    ]
    end, target = next((at, to) for at, to in branches if to <= at and at > max(accesses))
    loads = [at for at, text, _ in lines if "LDG" in text and re.search(access, text)]
    begin = min(loads) if loads else target
    code = {at: text for at, text, _ in lines if begin <= at <= end}

    def philox(first: int, last: int) -> bool:
        return sum("IMAD.WIDE.U32" in code.get(at, "") for at in range(first, last, 16)) > 20

    def once(first: int, last: int) -> bool:
        """What a block of a plain kernel does once, or one warp of it: quotients of the prior, constants, sums."""
        skipped = [text for at, text in code.items() if first < at < last]
        return (
            access == VECTOR
            and any(re.search(r"\bD(ADD|MUL|FMA)|RCP64H", text) for text in skipped)
            and not any(re.search(VECTOR, text) for text in skipped)
        )

    for at, to in branches:  # over a next sample, or its Philox words, where there is none
        if at in code and at < to and ((philox(begin, at) and philox(at, to)) or once(at, to)):
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
        short = re.sub(r"void |illia::(cuda::)?|\(.*", "", name)
        short = short.replace("__nv_bfloat16", "bfloat16").replace("__half", "half")
        kernel = short.split("<")[0]
        count = ""
        if kernel in KERNELS:
            types = short[:-1].split("<")[1].split(", ")
            general = "General" in short
            elements = GENERAL if general else KERNELS[kernel][0]
            loop = main_loop(code[mangled], ELEMENT if general else VECTOR)
            for access, expected in ({} if general else expected_accesses(kernel, types)).items():
                found = sum(access in line.text for line in code[mangled])
                if found < expected:  # a loop may stand there twice
                    faults.append(f"{short}: {found} {access}, expected {expected}")
            if not general and KERNELS[kernel][1] and WIDTHS[types[0]] == 2:
                waits = waits_between_loads(code[mangled], kernel, types)
                if len(waits) > 1:  # ptxas likes to use the first one before it issues the last
                    faults.append(f"{short} waits for loads of its tile before it asks for others: {'; '.join(waits)}")
            count = f"{len(loop) / elements['double' in short]:.1f}"
        print(f"{short:68} {registers[mangled]:9} {count:>24}")
    print(*faults, sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
