"""The private names of torch that the package stands on: all of them listed here, there, and as we take them to be."""

import ast
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from torch.autograd import forward_ad

import illia_ext
from illia_ext._ops.fake import op

NAMES = {
    "torch._C._autograd._top_saved_tensors_default_hooks": "it shows whether a part of a module is checkpointed",
    "torch._C._autograd._pop_saved_tensors_default_hooks": "it shows the hooks beneath",
    "torch._C._autograd._push_saved_tensors_default_hooks": "it puts them back",
    "torch._C._functorch.get_unwrapped": "it gives what vmap hides a tensor in",
    "torch._C._functorch.is_batchedtensor": "it says whether vmap made a tensor",
    "torch.ops.aten._scaled_dot_product_attention_math": "it is attention by its formula, which vmap can batch",
    "torch.nn.Module._apply": "it moves a module's tensors",
    "torch.nn.Module._compiled_call_impl": "it is there where a module is compiled in place",
    "torch.nn.Module._forward_hooks": "it holds a module's hooks",
    "torch.nn.Module._forward_pre_hooks": "it holds a module's hooks, also a scripted one's",
    "torch._C._AutoDispatchBelowAutograd": "it calls an op's kernel from the op's autograd kernel",
    "torch._C._are_functorch_transforms_active": "it says whether a transform of torch.func is running",
    "torch._C._current_graph_task_id": "it says whether a backward pass is running",
    "torch._C._get_tracing_state": "it says whether torch.jit.trace is running",
    "torch._C._is_fwd_grad_enabled": "it says whether forward mode may record",
    "torch._C._len_torch_dispatch_stack": "it counts the modes that see calls of ops",
    "torch._functorch.autograd_function.enable_single_level_autograd_function": "it lets a level of torch.func record",
    "torch.autograd.Function._compiled_autograd_key": "it lets compiled autograd trace a backward",
    "torch.autograd.function._SingleLevelFunction": "it is the autograd.Function of one level of torch.func",
    "torch.autograd.forward_ad._current_level": "it says whether forward mode is on",
    "torch.autograd.forward_ad._set_fwd_grad_enabled": "it turns forward mode on for the levels below",
    "torch.distributions.Distribution._validate_args": "it says whether a distribution checks its arguments",
    "torch.nn.LSTM(1, 1)._flat_weights": "it is the list of a recurrent layer's parameters",
    "torch.nn.LSTM(1, 1)._flat_weight_refs": "it says for which parameters that list was made",
    "torch.nn.Module._backward_hooks": "it holds a module's hooks",
    "torch.nn.Module._backward_pre_hooks": "it holds a module's hooks",
    "torch.nn.Module._buffers": "it holds a module's buffers, to be read without attribute access",
    "torch.nn.Module._load_from_state_dict": "it loads the parameters of one module",
    "torch.nn.Module._modules": "it holds a module's children",
    "torch.nn.Module._parameters": "it holds a module's parameters",
    "torch.nn.modules.module._global_backward_hooks": "it holds the hooks of all modules",
    "torch.nn.modules.module._global_backward_pre_hooks": "it holds the hooks of all modules",
    "torch.nn.modules.module._global_forward_hooks": "it holds the hooks of all modules",
    "torch.nn.modules.module._global_forward_pre_hooks": "it holds the hooks of all modules",
    "torch.nn.functional.has_torch_function": "it asks whether a mode takes the call",
    "torch.nn.parallel.DistributedDataParallel._get_active_ddp_module": "it says whether DDP is in a forward pass",
    "torch.autograd.function.BackwardCFunction._raw_saved_tensors": "it shows whether a backward pass has freed a node",
    "torch.utils.checkpoint._CheckpointFrame": "it is a part that backward may compute again",
    "torch.utils.checkpoint.CheckpointFunction._backward_cls": "its instances are such parts, of the other kind",
    "torch.nn.utils.stateless._reparametrize_module": "it replaces parameters in a compiled program",
    "torch.nn.utils.parametrize._cache_enabled": "it says whether computed parameters are kept",
    "torch.Tensor._version": "it counts a buffer's changes in place",
    "torch.utils._pytree.tree_leaves": "it finds what is batched in a list of tensors",
    "torch.utils._pytree.tree_map": "it maps over the outputs of an op",
    "torch._ops.OpOverload._schema": "it names an op's arguments and their defaults",
}


INSTANCES = {  # owners whose attributes only an object has
    "torch._ops.OpOverload": op("standard_normal"),
    "torch.nn.LSTM(1, 1)": torch.nn.LSTM(1, 1),
    "torch.nn.Module": torch.nn.Module(),
}


def private_parts(source: str) -> Iterator[str]:
    """What begins with one underscore in an attribute that is not our own, or in an import from torch."""
    for node in ast.walk(ast.parse(source)):
        parts: list[str] = []
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            parts = [node.attr]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
        yield from (part for part in parts if part.startswith("_") and not part.startswith("__"))


@pytest.mark.parametrize("name", NAMES)
def test_torch_has(name: str) -> None:
    owner, _, attribute = name.rpartition(".")
    try:
        getattr(INSTANCES[owner] if owner in INSTANCES else resolve_name(owner), attribute)
    except (AttributeError, ImportError) as error:
        raise AssertionError(
            f"torch {torch.__version__} has no {name} any more ({NAMES[name]}): "
            "illia_ext/_ops needs what took its place"
        ) from error


def test_the_list_is_complete() -> None:
    sources = [path.read_text() for path in Path(illia_ext.__file__).parent.rglob("*.py")]
    used = {part for source in sources for part in private_parts(source)}
    listed = {part for name in NAMES for part in name.split(".") if part.startswith("_")}
    assert used <= listed, f"private names that this file does not list: {used - listed}"
    assert all(any(name.split(".")[-1] in source for source in sources) for name in NAMES), "a name is used no more"


def test_they_mean_what_we_think() -> None:
    active = torch._C._are_functorch_transforms_active
    seen: list[tuple[bool, int]] = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.append((active(), forward_ad._current_level))
        return x.sum()

    x = torch.ones(2)
    watch(x)
    torch.func.grad(watch)(x)
    torch.func.vmap(watch)(x[None])
    torch.func.jvp(watch, (x,), (x,))
    with forward_ad.dual_level():
        watch(x)
    assert seen == [(False, -1), (True, -1), (True, -1), (True, 0), (False, 0)]

    arguments = op("gaussian_sample")._schema.arguments
    assert [a.name for a in arguments if a.kwarg_only] == ["dtype", "full_size", "origin", "antithetic"]
    assert [a.default_value for a in arguments] == [None] * 6 + [False]

    leaf = torch.ones(2, requires_grad=True)
    excluded, autograd = torch._C._dispatch_tls_is_dispatch_key_excluded, torch._C.DispatchKey.AutogradFunctionality
    assert not excluded(autograd)
    with torch._C._AutoDispatchBelowAutograd():
        assert not (2 * leaf).requires_grad
        assert excluded(autograd)
    with torch.inference_mode():
        assert excluded(autograd)

    assert torch._C._len_torch_function_stack() == 0
    with torch.device("cpu"):  # a function mode that everybody uses
        assert torch._C._len_torch_function_stack() == 1
