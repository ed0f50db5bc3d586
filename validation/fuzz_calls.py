"""From a fuzzer's bytes to a call of an op: mostly as its schema wants it, now and then odd in one place or more."""

import math
from typing import Any

import torch
from torch import Tensor

from illia_ext._ops.fake import NAMES, op

__all__ = ["HUGE", "Call"]

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DTYPES = (
    *(*FLOATS, torch.int64, torch.uint64, torch.int32, torch.bool, torch.complex64, torch.float8_e5m2),
    *(torch.float8_e8m0fnu, torch.uint4, torch.bits8),
)
SIZES = (1, 2, 3, 0, 5, 17)
LONG_SIZES = (1, 70, 260, 1030)  # beyond a tile of noise, a piece and a chunk of the CPU kernels
WORDS = (0, 1, -1, 2**63 - 1, -(2**63), 2**32, -(2**32), 7)
NUMBERS = (0.5, 1.0, -1.5, 0.0, -8.0, 3.0, 1e-30, 1e30, math.inf, -math.inf, math.nan)
MODERATE = 6  # of them
HUGE = 2**50  # elements: no memory holds them


class Call:
    """`op(name)(**arguments)`; the tensors are views of `memory`; `moderate`: no value is extreme."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.memory: list[Tensor] = []
        self.moderate = True
        self.name = data.PickValueInList(list(NAMES))
        self.dtype = data.PickValueInList(list(FLOATS))
        self.device = "meta" if data.ConsumeIntInRange(0, 4) == 4 else "cpu"
        self.shape = [data.PickValueInList(list(SIZES)) for _ in range(data.ConsumeIntInRange(0, 3))]
        if len(self.shape) < 2:
            self.shape.append(data.PickValueInList(list(LONG_SIZES)))
        if self.odd():
            self.shape = [HUGE]
        self.samples = [data.ConsumeIntInRange(0, 3)] if data.ConsumeBool() else []
        schema = op(self.name)._schema.arguments
        foreach = self.name.startswith("foreach")
        others = data.ConsumeIntInRange(0, 2) if foreach else 0
        shapes = [self.shape, *([data.PickValueInList(list(SIZES))] for _ in range(others))]
        self.arguments = {}
        for argument in schema:
            if not argument.has_default_value() or data.ConsumeBool():
                self.arguments[argument.name] = self.value(argument.name, str(argument.type), shapes)
        self.before = [memory.view(torch.uint8).clone() for memory in self.memory]

    def odd(self, one_in: int = 24) -> bool:
        # neither end, where data that have run out, or are all ones, lead
        return self.data.ConsumeIntInRange(1, one_in) == 1 + one_in // 3

    def value(self, name: str, kind: str, shapes: list[list[int]]) -> Any:
        pick = self.data.PickValueInList
        if kind.startswith("List[") and "Tensor" in kind:
            shapes = shapes[: self.data.ConsumeIntInRange(0, len(shapes))] if self.odd() else shapes
            if name.endswith("prior") and pick([True, False]):
                shapes = shapes[:1]
            return [self.tensor(name, shape, "Optional" in kind) for shape in shapes]
        if "Tensor" in kind:
            return self.tensor(name, self.shape, "Optional" in kind)
        if name == "dtype":
            return pick(list(DTYPES)) if self.odd(6) else pick([self.dtype, torch.float16, torch.bfloat16])
        if name == "size":
            return [*self.shape, *([pick([-1, -(2**62), HUGE, 2**62, 7])] if self.odd() else [])]
        if name in ("full_size", "origin"):
            return None if self.odd(12) else self.place(name)
        if name == "output_mask":
            count = self.data.ConsumeIntInRange(0, 7) if self.odd(12) else 5
            return [self.data.ConsumeBool() for _ in range(count)]
        return self.data.ConsumeBool()

    def place(self, name: str) -> list[int]:
        """Each size three larger and each start at 0 to 3, as a rule."""
        sizes = [n + 3 if name == "full_size" else self.data.ConsumeIntInRange(0, 3) for n in self.shape]
        if sizes and self.odd(12):
            sizes[self.data.ConsumeIntInRange(0, len(sizes) - 1)] = self.data.PickValueInList(
                [-1, 0, 4, 2**31, 2**62, 2**63 - 1, -(2**63)]
            )
        return sizes[self.odd() :]

    def tensor(self, name: str, shape: list[int], optional: bool) -> Tensor | None:
        pick = self.data.PickValueInList
        if self.odd(4) if optional else self.odd(64):
            return None
        dtype, device = self.dtype, self.device
        if name == "key":
            shape, dtype = [*self.samples, 2], pick([torch.int64, torch.uint64])
        elif name in ("x", "grad_x"):
            shape = [*self.samples, *shape]
            dtype = pick([dtype, dtype, torch.float16, torch.bfloat16]) if dtype == torch.float32 else dtype
        elif name in ("grad_log_prob", "grad"):
            shape = self.samples if name == "grad_log_prob" else []
            dtype = torch.float64 if dtype == torch.float64 else torch.float32
        elif name.endswith("prior"):
            dtype = pick([dtype, *FLOATS])
            shape = pick([[], [1], shape, [pick([1, n]) for n in shape]])
            device = pick([device, "cpu"]) if shape == [] else device
        if self.odd():
            dtype = pick(list(DTYPES))
        if self.odd():
            device = pick(["cpu", "meta"])
        if self.odd():
            shape = pick([shape[1:], [*shape, 1], [1, *shape], [2, *shape], [*shape[:-1], 4], [3]])
        return self.filled(shape, dtype, device, name in ("std_prior", "rho"))

    def filled(self, shape: list[int], dtype: torch.dtype, device: str, positive: bool) -> Tensor:
        """With values and strides as the data say."""
        pick, dims = self.data.PickValueInList, range(len(shape))
        layout = pick(["plain", "strided", "expanded", "offset", "negated"])
        sizes = [1 if n >= HUGE or (layout == "expanded" and pick([True, False])) else n for n in shape]
        step, offset = (2 if layout == "strided" else 1), (3 if layout in ("strided", "offset") else 0)
        order = list(dims)[::-1] if layout == "strided" else list(dims)
        memory = torch.empty(offset + math.prod(n * step for n in sizes) + offset, dtype=dtype, device=device)
        self.memory.append(memory)
        if device == "cpu" and memory.element_size():
            self.fill(memory, positive)
        inside = memory[offset : memory.numel() - offset].view([sizes[dim] * step for dim in order])
        tensor = inside[(slice(None, None, step),) * len(dims)].permute(order).expand(shape)
        if layout != "negated" or dtype not in FLOATS:
            return tensor
        memory.neg_()  # what a lazily negated view then undoes
        return torch._neg_view(tensor)

    def fill(self, memory: Tensor, positive: bool) -> None:
        if memory.dtype in (torch.int64, torch.uint64):
            words = [self.data.PickValueInList(list(WORDS)) for _ in range(4)]
            memory.view(torch.int64).copy_(torch.tensor(words * (memory.numel() // 4 + 1))[: memory.numel()])
        elif memory.dtype in FLOATS:
            place = self.data.ConsumeIntInRange(0, len(NUMBERS) + 8) - 9
            value = NUMBERS[max(place, 0)]
            self.moderate &= place < MODERATE
            memory.copy_(torch.linspace(-1, 1, memory.numel()) * value)
            if positive:
                memory.abs_().add_(0.125)
        else:
            memory.view(torch.uint8).zero_()
