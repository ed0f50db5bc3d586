"""What the documentation says that an op accepts, once more and apart from the library's own checks."""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["Rules"]

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALVES = (torch.float16, torch.bfloat16)


def is_on_meta(arguments: dict[str, Any]) -> bool:
    values = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    return any(isinstance(value, Tensor) and value.is_meta for value in values)


def broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(shape[::-1], target[::-1]))


class Rules:
    """The arguments that break one: `wrong`, or `left` on the meta device, where only devices are looked at. `parser`:
    torch itself cannot take one of them."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.wrong: set[str] = set()
        self.left: set[str] = set()
        self.parser = any(
            isinstance(value, list) and name != "grad_x" and None in value for name, value in arguments.items()
        )
        self.meta = is_on_meta(arguments)
        a = {"dtype": None, "full_size": None, "origin": None, **arguments}
        foreach = "mu" in a and isinstance(a["mu"], list)
        if self.parser:
            return
        (self.check_lists if foreach else self.check_one)(a)

    def need(self, holds: bool, name: str, of_device: bool = False) -> None:
        if not holds:
            (self.left if self.meta and not of_device else self.wrong).add(name)

    def check_one(self, a: dict[str, Any]) -> None:
        missing = [n for n, v in a.items() if v is None and n not in ("dtype", "full_size", "origin")]
        optional = ("grad_x", "grad_log_prob") if "key" in a and "mu" in a else ()
        self.wrong |= {name for name in missing if name not in optional}
        if self.wrong:
            self.left |= set(a)  # some rule of any other argument may be read first
            return
        leader = a["mu"] if "mu" in a else a.get("rho")
        if leader is not None:
            self.need(leader.dtype in FLOATS, "mu" if "mu" in a else "rho")
        if "mu" in a:
            self.like("rho", a["rho"], leader)
        self.check_key(a, leader)
        if a["dtype"] is not None:
            fits = a["dtype"] in FLOATS if leader is None else self.fits(a["dtype"], leader.dtype)
            self.need(fits, "dtype")
        samples = list(a["key"].shape[:-1]) if "key" in a else []
        if "x" in a:
            x = a["x"]
            self.need(self.fits(x.dtype, leader.dtype), "x")
            self.need(leader.shape in (x.shape, x.shape[1:] if x.dim() else None), "x")
            self.need(x.device == leader.device, "x", True)
            samples = list(x.shape[: max(x.dim() - leader.dim(), 0)])
        self.check_priors(a, leader)
        self.check_grads(a, leader, samples)
        self.check_block(a, list(a["size"]) if "size" in a else list(leader.shape) if leader is not None else [])

    def fits(self, dtype: torch.dtype, parameters: torch.dtype) -> bool:
        return dtype == parameters or (parameters == torch.float32 and dtype in HALVES)

    def like(self, name: str, tensor: Tensor, leader: Tensor) -> None:
        self.need(tensor.dtype == leader.dtype, name)
        self.need(tensor.shape == leader.shape, name)
        self.need(tensor.device == leader.device, name, True)

    def check_key(self, a: dict[str, Any], leader: Tensor | None) -> None:
        if "key" not in a:
            return
        key = a["key"]
        if key is None:
            self.wrong.add("key")
            return
        self.need(key.dtype in (torch.int64, torch.uint64), "key")
        self.need(key.dim() in (1, 2) and key.shape[-1] == 2, "key")
        self.need(leader is None or key.device == leader.device, "key", True)

    def check_priors(self, a: dict[str, Any], mu: Tensor) -> None:
        mask = a.get("output_mask", [False] * 5)
        asked = (a.get("prior_grads", False) or mask[3:4] == [True], a.get("prior_grads", False) or mask[4:5] == [True])
        for name, gradient in zip(("mu_prior", "std_prior"), asked):
            if name not in a:
                continue
            prior = a[name]
            self.need(prior.dtype in FLOATS, name)
            self.need(prior.device == mu.device or (prior.dim() == 0 and prior.device.type == "cpu"), name, True)
            self.need(prior.numel() == 1 or broadcasts(prior.shape, mu.shape), name)
            self.need(not gradient or prior.device == mu.device, name)

    def check_grads(self, a: dict[str, Any], leader: Tensor | None, samples: list[int]) -> None:
        if a.get("grad_x") is not None:
            self.check_grad_x(a["grad_x"], leader, samples)
        for name, shape in (("grad_log_prob", samples), ("grad", [])):
            if a.get(name) is not None:
                grad, double = a[name], leader.dtype == torch.float64
                self.need(grad.dtype == (torch.float64 if double else torch.float32), name)
                self.need(list(grad.shape) == shape, name)
                self.need(grad.device == leader.device, name, True)
        self.need(len(a.get("output_mask", [0] * 5)) == 5, "output_mask")

    def check_grad_x(self, grad_x: Tensor, leader: Tensor, samples: list[int]) -> None:
        self.need(self.fits(grad_x.dtype, leader.dtype), "grad_x")
        self.need(list(grad_x.shape) == [*samples, *leader.shape], "grad_x")
        self.need(grad_x.device == leader.device, "grad_x", True)

    def check_block(self, a: dict[str, Any], sizes: list[int]) -> None:
        self.need(all(n >= 0 for n in sizes), "size")
        full, origin = a["full_size"], a["origin"]
        if full is None and origin is None:
            return
        self.need(full is not None and (origin is None or len(full) == len(sizes)), "full_size")
        self.need(origin is not None and (full is None or len(origin) == len(sizes)), "origin")
        if (self.wrong | self.left) & {"full_size", "origin"}:
            return
        inside = all(start >= 0 and start + n <= m for start, n, m in zip(origin, sizes, full))
        self.need(inside, "origin")
        self.need(math.prod(max(m, 1) for m in full) < 2**63, "full_size")

    def check_lists(self, a: dict[str, Any]) -> None:
        mu, rho = a["mu"], a["rho"]
        self.need(len(mu) > 0, "mu")
        self.need(len(rho) == len(mu), "rho")
        for name in ("mu_prior", "std_prior"):
            self.need(len(a[name]) in (1, len(mu)), name)
        self.need("grad_x" not in a or len(a["grad_x"]) == len(mu), "grad_x")
        if "grad" in a and a["grad"] is None:
            self.wrong.add("grad")
        if self.wrong or self.left:
            self.left |= set(a)
            return
        for k, leader in enumerate(mu):
            self.need(leader.dtype in FLOATS, "mu")
            self.need(leader.dtype == mu[0].dtype, "mu")
            self.need(leader.device == mu[0].device, "mu", True)
            self.like("rho", rho[k], leader)
            self.check_priors({n: a[n][k if len(a[n]) > 1 else 0] for n in ("mu_prior", "std_prior")}, leader)
        self.check_key(a, mu[0])
        samples = list(a["key"].shape[:-1]) if a.get("key") is not None else []
        if a["dtype"] is not None:
            self.need(self.fits(a["dtype"], mu[0].dtype), "dtype")
        grads = [(grad, leader) for grad, leader in zip(a.get("grad_x", ()), mu) if grad is not None]
        for grad, leader in grads:
            self.check_grad_x(grad, leader, samples)
            self.need(grad.dtype == grads[0][0].dtype, "grad_x")
        self.check_grads({**a, "grad_x": None}, mu[0], samples)
