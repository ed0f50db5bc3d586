"""Every transform of torch.func, for functions of mu and rho; and what counts the calls of our ops."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

BOTH = (0, 1)


def total(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda mu, rho: (function(mu, rho) ** 2).sum()


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor]], Callable[..., Any]]] = {
    "grad": lambda f: grad(total(f), BOTH),
    "vjp": lambda f: lambda mu, rho: vjp(f, mu, rho)[1](torch.ones_like(f(mu, rho))),
    "jvp": lambda f: lambda mu, rho: jvp(f, (mu, rho), (rho, mu)),
    "jacrev": lambda f: jacrev(f, BOTH),
    "jacfwd": lambda f: jacfwd(f, BOTH),
    "hessian": lambda f: hessian(f, BOTH),
    "grad of grad": lambda f: grad(lambda mu, rho: total(grad(total(f), BOTH[1]))(mu, rho), BOTH),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f, BOTH), BOTH),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f, BOTH), BOTH),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f, BOTH), BOTH),
    "grad of jvp": lambda f: grad(lambda mu, rho: jvp(total(f), (mu, rho), (rho, mu))[1], BOTH),
    "vmap of grad": lambda f: (
        lambda mu, rho: vmap(grad(total(f), BOTH))(torch.stack([mu, rho]), torch.stack([rho, mu]))
    ),
    "vmap of hessian to rho": lambda f: lambda mu, rho: vmap(hessian(f, 1), (None, 0))(mu, torch.stack([rho, mu])),
}
SECOND = [name for name in TRANSFORMS if (" of " in name and name != "vmap of grad") or name == "hessian"]


class Count(TorchDispatchMode):
    """Counts the calls of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "illia_ext":
            self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))
