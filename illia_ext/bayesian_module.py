"""Any module made Bayesian: its parameters become Gaussians, all drawn in one launch."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.distributions import Distribution
from torch.nn.utils import parametrize

from illia_ext import functional
from illia_ext._checks import check_count, check_one_prior, shown
from illia_ext._module.guard import refuse_trainer, with_signature
from illia_ext._module.in_place import (
    Turns,
    Watch,
    deep_copy,
    look_up,
    parameters_replaced,
    places,
    put_in_place,
    tree,
)
from illia_ext._module.outputs import Prediction, join_samples, mean, refuse_lazy
from illia_ext._module.posterior import Posterior
from illia_ext._module.vmap import at_once
from illia_ext._ops.dispatch import dispatch_modes, is_plain
from illia_ext._ops.foreach import Apart
from illia_ext.distributions import DistributionModule
from illia_ext.priors import arithmetic, closed_form_kl, log_density
from illia_ext.selection import (
    Initial,
    Rows,
    Select,
    initial_rho,
    leave_out,
    make_distributions,
    make_prior,
    mean_of_norms,
    padding_rows,
    put_back,
    reset,
    selected_names,
    shard_like,
)

__all__ = ["BayesianModule", "Prediction"]

_TRANSFORM = "transform of predict"  # no argument of a module has this name


class BayesianModule(Posterior):
    """Any module with Gaussian weights, q = N(mu, softplus(rho)^2), and the prior p = N(mu_prior, std_prior^2).

    `self.module` is a copy of the module (itself with copy=False), whose selected parameters are the mus; `self.rho`
    holds their rhos under the same names. So a state_dict has `module.<name>` and `rho.<name>`, and
    `bnn.module.load_state_dict` takes a plain module's weights. What is not selected stays: buffers, other parameters,
    modules' hooks. A tied weight is one Gaussian. mu and rho require gradients where the parameter did.

        bnn = BayesianModule(network)
        optimizer = torch.optim.Adam(bnn.parameters(), lr=1e-3)
        output, log_prob = bnn(inputs)
        loss = elbo_loss(cross_entropy(output, labels), log_prob, num_data=60000)

    The defaults were chosen by measurement (docs/defaults.md): in 30 epochs at a learning rate of 1e-3 the accuracy of
    five classifiers came within 1 % of deterministic ones; with std_prior=0.1 they lost up to 14 %, for a narrow prior
    asks so much of each weight that forgetting the data may be the better bound. `elbo_loss` tells what to do if a
    network does not learn.

    Args:
        module: the network to convert. It is deep-copied, and the original stays unchanged, unless copy=False: an
            optimizer made for the original's parameters trains nothing here.
        mu_prior, std_prior: of the prior: a number, for all weights; an nn.Parameter of one element, which is learned
            (`illia_ext.Positive` keeps a learned std_prior positive); or a function (name, parameter) that
            gives, for one parameter, a number, a tensor that broadcasts to its shape, or an nn.Parameter, which is
            learned. mu_prior=None: 0, but their initial values for the weights of normalisation layers, which scale by
            about 1: modules of a class with "Norm" in its name, such as LayerNorm, but not Normal.
        rho_init: the initial rho, a number or a function (name, parameter) that gives a number or a tensor. -5 is a
            sigma of 0.0067; where trained weights are smaller than 0.01, take `relative_rho(0.1)`. Load trained
            weights before the conversion, which computes the priors and rho from them.
        select: which parameters become Gaussians: a function (name, parameter) -> bool, or their names. None: all that
            require a gradient; frozen ones stay plain. A tied weight is taken if any of its names is.
        copy: whether the module is deep-copied. With False its own parameters become mu and nothing is copied, so a
            frozen base of any size costs nothing. Make the optimizer after the conversion: one made before has no rho.
        reset_parameters: let the submodules that hold selected parameters start anew, by their reset_parameters().
        prior: in place of mu_prior and std_prior, a torch.distributions.Distribution on all real numbers whose shape
            broadcasts to each weight's; or an nn.Module whose forward() makes one at each call, from parameters that
            are learned; or a function (name, parameter) that gives either. Tensors are kept in the state_dict, under
            names that tell the distribution. A Normal of numbers is the Gaussian prior of
            mu_prior and std_prior. Normal, Laplace and `illia_ext.ScaleMixture` are computed in the pass that draws;
            where a prior is another one, log_prob is evaluated for each weight, which takes more time and memory
            (docs/priors.md).
        chunk_size: how many of several samples run at once, by torch.vmap. 1: one after the other, each as a single
            call, which is right for every module. More pays for many samples of small layers: 100 of a 13-50-1
            perceptron take a fifth of the time on a CPU with chunk_size=100. What vmap cannot do as single calls do is
            then refused: hooks, statistics to update, recurrent layers, changes in place.
        stick_the_landing: leave the score term, whose mean is zero, out of log_prob's gradient, as
            `functional.gaussian_sample_and_log_prob` says. An attribute of this name may be changed between steps.

    To give another library the outputs that it expects, hold the BayesianModule in a module of your own, as
    docs/recipes shows; `predict` and `sampled` need its own forward. Functions of a parameter are given it detached:
    `mu_prior=lambda name, weight: weight` is a fixed prior. FSDP2's `fully_shard` takes the BayesianModule as a whole,
    no part of it; methods beside forward need `register_fsdp_forward_method`. Parts with Gaussian weights may be
    checkpointed inside `sampled()`, other parts always. The row `padding_idx` of an embedding is no weight: it is
    neither drawn nor counted, and stays as it is in mu, also for a layer that is tied to it. To compile several samples
    use `bnn.module.compile()`: one graph for all.

    Raises:
        TypeError: no nn.Module, or one by TorchScript; a parameter that is not float32, float64, float16 or bfloat16;
            an argument of a wrong kind.
        ValueError: a part that draws by itself (a distribution, another BayesianModule), selected or not; no parameter
            or an unknown one is selected, one of a lazy module, one of a Bayesian layer of another library, parameters
            of several dtypes or devices, or two in one memory; a module that holds a tensor with a graph, as pruning
            leaves it; a prior or rho_init out of range or of another shape; prior beside mu_prior or std_prior, or not
            a density of all real numbers, or a fixed one with a tensor that requires a gradient;
            reset_parameters=True with copy=False, or where a submodule has no reset_parameters().

    Source: Graves, "Practical variational inference for neural networks" (2011); Blundell et al., "Weight uncertainty
    in neural networks" (2015).
    """

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]: ...

    def __init__(
        self,
        module: nn.Module,
        mu_prior: Initial | None = None,
        std_prior: Initial = 1.0,
        rho_init: Initial = -5.0,
        select: Select = None,
        *,
        prior: "Distribution | nn.Module | Callable[[str, Tensor], Distribution | nn.Module] | None" = None,
        copy: bool = True,
        reset_parameters: bool = False,
        chunk_size: int = 1,
        stick_the_landing: bool = False,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: expected an nn.Module, got {shown(module)}")
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"module: expected a Python module, got {type(module).__name__}, whose weights are fixed")
        check_count("chunk_size", chunk_size, least=1)
        if not isinstance(stick_the_landing, bool):
            raise TypeError(f"stick_the_landing: expected True or False, got {shown(stick_the_landing)}")
        if reset_parameters and not copy:
            raise ValueError("reset_parameters: expected False with copy=False, which would overwrite the given module")
        names = selected_names(module, select, (DistributionModule, BayesianModule))
        super().__init__(look_up(module, places([next(iter(names))]))[0].device)
        self.chunk_size = chunk_size
        self.stick_the_landing = stick_the_landing
        self.module = deep_copy(module) if copy else module
        if not copy:
            self._turns = Turns.of(module)
        self._names = list(names)
        self._weights = places(names)
        ties = [(alias, i) for i, aliases in enumerate(names.values()) for alias in aliases[1:]]
        self._ties = [(alias, places([alias]), i) for alias, i in ties]
        # where samples go: a module that stands at two places is given its weights once
        index = {alias: i for i, aliases in enumerate(names.values()) for alias in aliases}
        for path, part in self.module.named_modules():
            prefix = f"{path}." if path else ""
            here = [(leaf, index[prefix + leaf]) for leaf, _ in part._parameters.items() if prefix + leaf in index]
            if here:
                self._targets.append((tuple(path.split(".")) if path else (), here))
        if reset_parameters:
            reset(self.module, self._names)
        mus = dict(zip(names, look_up(self.module, self._weights)))
        self._padding = padding_rows(self.module, self._targets)
        self.rho = tree(
            {name: nn.Parameter(initial_rho(name, mu.detach(), rho_init), mu.requires_grad) for name, mu in mus.items()}
        )
        self.prior = None
        if prior is not None:
            check_one_prior(mu_prior=(mu_prior, None), std_prior=(std_prior, 1.0))
            made = make_distributions(prior, mus, [self._names[i] for i in self._padding])
            if isinstance(made, nn.Module):
                self.prior, self.mu_prior, self.std_prior = made, None, None
            else:
                mu_prior, std_prior = made
        elif mu_prior is None:
            mu_prior = mean_of_norms(self.module, self._targets, self._names)
        if self.prior is None:
            for argument, value in (("mu_prior", mu_prior), ("std_prior", std_prior)):
                gaussian = make_prior(argument, value, mus)
                if isinstance(gaussian, nn.Parameter):
                    self.register_parameter(argument, gaussian)
                elif isinstance(gaussian, Tensor):
                    self.register_buffer(argument, gaussian)
                else:
                    self.add_module(argument, tree(gaussian))
        if type(self).forward is BayesianModule.forward and "forward" not in vars(self.module):
            kind = parametrize.type_before_parametrizations(self.module)
            self.__class__ = with_signature(type(self), kind)  # type: ignore

    def _call(self, args: Any, kwargs: Any, transform: Any, weights: Sequence[Tensor]) -> Any:
        if is_compiling():  # which computes nothing again
            with parameters_replaced(self.module, self._targets, weights):
                return transform(self.module(*args, **kwargs))
        with self._turns():
            self._turns.wait("bnn(x)")
            with self._look_for_caches():
                try:
                    put_in_place(self._turns, self.module, self._targets, weights, Watch())
                    return transform(self.module(*args, **kwargs))
                finally:
                    self._turns.take_away()

    def _without_padding(
        self, mus: list[Tensor], rhos: list[Tensor], mu_prior: Any, std_prior: Any
    ) -> tuple[tuple[Any, Any, Any, Any], Rows]:
        """mu, rho, mu_prior and std_prior as the ops take them, and the padding rows of mu, which are left out."""
        mu_prior, std_prior = (shard_like(mus, p) if isinstance(p, list) else p for p in (mu_prior, std_prior))
        if not self._padding:
            return (mus, rhos, mu_prior, std_prior), {}
        mu, rows = leave_out(mus, self._padding, mus)
        rho, mu_prior, std_prior = (
            leave_out(p, self._padding, mus)[0] if isinstance(p, list) else p for p in (rhos, mu_prior, std_prior)
        )
        return (mu, rho, mu_prior, std_prior), rows

    def _draw(
        self,
        mus: list[Tensor],
        rhos: list[Tensor],
        key: Tensor,
        antithetic: bool = False,
        is_repeatable: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """`is_repeatable`: by a draw whose backward may run several times."""
        try:
            gaussian, family, others = self._prior_terms()
            arguments, rows = self._without_padding(mus, rhos, *gaussian)
            # the dtype said: under autocast the weights of norms stay as they are, other ops narrow theirs
            x, log_prob = functional.foreach_gaussian_sample_and_log_prob(
                *arguments,
                key,
                rhos[0].dtype,
                self.stick_the_landing,
                **family,
                antithetic=antithetic,
                is_repeatable=is_repeatable,
            )
            if rows:
                x = put_back(x, rows, len(mus))
            if others:
                log_prob = (log_prob - self._sum_over(log_density, others, x, mus)).to(log_prob.dtype)
            return x, log_prob
        except (RuntimeError, TypeError, ValueError):
            self._explain()
            raise

    def _draw_each(
        self, mus: list[Tensor], rhos: list[Tensor], keys: Tensor, antithetic: bool
    ) -> Iterator[tuple[Sequence[Tensor], Tensor]]:
        """(weights, log_prob) of each sample."""
        # One op for four samples takes a fifth less of a step; without gradients, memory for one is what counts.
        by_fours = torch.is_grad_enabled() and is_plain([*mus, *rhos, keys]) and not dispatch_modes()
        for some in keys.split((2 if antithetic else 4) if by_fours else 1):
            if len(some) == 1 and not antithetic:
                yield self._draw(mus, rhos, some[0])
                continue
            samples, log_prob = self._draw(mus, rhos, some, antithetic)
            if not by_fours:  # a pair: views, which transforms and compilers take
                yield from (([x[i] for x in samples], log_prob[i]) for i in range(len(log_prob)))
                continue
            apart = Apart.apply(*samples)
            weights = [apart[start : start + len(mus)] for start in range(0, len(apart), len(mus))]
            yield from zip(weights, log_prob.unbind())

    @contextmanager
    def sampled(self, key: Tensor | None = None) -> Iterator[Tensor]:
        """Inside the block, bnn.module is one sample of the weights: call it, its parts, its methods, or pass it on.

            with bnn.sampled() as log_prob:
                loss = criterion(bnn.module(inputs), targets)
                elbo_loss(loss, log_prob, num_data).backward()

        Nothing is copied, and the parameters are back in place at the end, after an exception too. `bnn` stays the
        distribution: its parameters() are mu and rho, for zero_grad() and clipping (the parameters() of an enclosing
        module yield the sample). bnn(x), state_dict, load_state_dict, to, deepcopy, pickle, kl_divergence and freeze
        are refused. What is lazy must be computed inside; what is set or loaded into bnn.module is lost.

        Parts of bnn.module may be checkpointed, if backward runs inside the block; without checkpoints it may also run
        later. log_prob may be used several times, as in micro-batches; where rho or a prior is parametrized, or the
        prior is not computed in the fused pass, pass retain_graph=True to all backward passes but the last. Other
        threads wait until the block ends; a suspended generator keeps it open.

        Under DDP the block belongs in the forward of the module that DDP wraps, under FSDP2 in a method given to
        `register_fsdp_forward_method`: there parameters are whole and gradients are reduced.

        Args:
            key: [2]; None draws one from torch's generator, or takes the frozen one.

        Yields:
            log_prob: scalar: sum over all weights of log q - log p, in nats.

        Raises:
            RuntimeError: inside another block or call of this module; parameters that are sharded; at the end, if a
                checkpointed part has read a weight and has not been differentiated.
        """
        mus, rhos = self._gaussians("sampled")
        self._check_processes(rhos[0])
        key = self._choose_one_key(key, rhos[0])
        if is_compiling():
            weights, log_prob = self._draw(mus, rhos, key)
            with parameters_replaced(self.module, self._targets, weights):
                yield log_prob
            return
        weights, log_prob = self._draw(mus, rhos, key, is_repeatable=True)
        watch = Watch(is_block=True)
        with self._turns():
            self._check_turn("sampled")
            token = self._turns.begin_block()
        try:
            with self._look_for_caches():
                put_in_place(self._turns, self.module, self._targets, weights, watch)
                yield log_prob
        finally:
            self._turns.end_block()
            del token
        if name := watch.owed():
            raise RuntimeError(
                f"{name}: a checkpointed part has read this Gaussian weight, and has not been differentiated inside "
                "the block, or its graph is retained: run backward there, for later it would compute the part with mu"
            )

    def forward(
        self,
        *args: Any,
        num_samples: int | None = None,
        key: Tensor | None = None,
        antithetic: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Tensor]:
        """The module's output for weights that are drawn for this call, and their log_prob.

        Args:
            args, kwargs: of the module; arguments named num_samples, key and antithetic by position alone.
            num_samples: how many samples of all weights; None for one, without a dimension of its own. They equal
                single calls with the same keys: an input that the module changes in place, such as a cache, is
                changed once per sample.
            key: [2] or [S, 2] (see `illia_ext.random`), in place of num_samples; None draws from torch's generator.
            antithetic: draw pairs, mu + sigma eps and then mu - sigma eps for all weights, whose errors partly cancel:
                an even num_samples, or two samples for each key of [k, 2].

        Returns:
            output: what the module gives. Of several samples, its tensors are stacked to [num_samples, ...]: a loss
                takes `output.flatten(0, 1)` and `labels.repeat(num_samples)`. Where another object (a cache) or a value
                differs, a tuple has one per sample. Containers are those that torch.utils._pytree knows;
                register_dataclass makes a dataclass one.
            log_prob: scalar or [num_samples]: sum over all weights of log q - log p, in nats.

        Raises:
            TypeError: an output that holds the module and would compute later, with mu; called by Hugging Face's
                Trainer itself, which needs a loss and logits.
            RuntimeError: a checkpointed part reads a Gaussian weight.
        """
        if not is_compiling():
            refuse_trainer(self)
        mus, rhos = self._gaussians("bnn(x)")
        key = self._choose_key(num_samples, key, rhos[0], antithetic)
        call = partial(self._call, args, kwargs, kwargs.pop(_TRANSFORM, lambda output: output))
        if key.dim() != 2:
            weights, log_prob = self._draw(mus, rhos, key)
            output = call(weights)
            refuse_lazy(output, mus)
            return output, log_prob
        outputs, log_probs = [], []
        if self.chunk_size == 1:
            for each, log_prob in self._draw_each(mus, rhos, key, antithetic):
                outputs.append(call(each))
                refuse_lazy(outputs[-1], mus)
                log_probs.append(log_prob)
            return join_samples(torch.stack, outputs), torch.stack(log_probs)
        for keys in key.split(max(self.chunk_size // 2, 1) if antithetic else self.chunk_size):
            weights, log_prob = self._draw(mus, rhos, keys, antithetic)
            outputs.append(at_once(call, weights, self.module, (args, kwargs)))
            log_probs.append(log_prob)
        return join_samples(torch.cat, outputs), torch.cat(log_probs)

    @torch.no_grad()
    def predict(
        self,
        *args: Any,
        num_samples: int | None = None,
        key: Tensor | None = None,
        antithetic: bool = False,
        transform: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> Prediction:
        """The outputs for several samples of the weights, and their mean, without gradients.

            probabilities = bnn.predict(inputs, transform=lambda logits: logits.softmax(-1)).mean

        The mean of logits is no prediction: their softmax is not the mean of the probabilities. For float16 or bfloat16
        logits use logits.float().softmax(-1). Integers and booleans are averaged in float32. Call eval() first: in
        training mode dropout is active and BatchNorm's statistics are updated, once for each sample; `predict` warns of
        it. BatchNorm's running statistics are an average over draws, which fits no single one well; LayerNorm and
        GroupNorm have none.

        Args:
            args, kwargs: as of `forward`.
            num_samples: None for 20, or as many as key has.
            key: [S, 2].
            antithetic: as of `forward`.
            transform: applied to the module's output for each sample, while the weights are that sample's. Its results
                are what is averaged and stacked: `lambda logits: logits.softmax(-1)`, `lambda output: output.logits` of
                a language model, `lambda flow: flow.log_prob(y)`.

        Returns:
            mean: of the outputs' tensors; None in place of other objects.
            samples: as of `forward`, after `transform`: [S, N, ...]; for libraries that expect [N, S, ...],
                transpose(0, 1).
        """
        if self.frozen:
            raise ValueError("predict: the weights are frozen, so that all samples would be one; unfreeze() them first")
        if not is_compiling() and any(part.training for part in self.module.modules()):
            message = "predict: the module is in training mode, in which Dropout and BatchNorm act otherwise"
            warnings.warn(f"{message}; call eval() first", stacklevel=3)
        if key is None and num_samples is None:
            num_samples = 20
        if isinstance(key, Tensor) and key.dim() == 1:
            raise ValueError(f"key: expected shape [num_samples, 2], got {list(key.shape)}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform: expected a function of the module's output, got {transform!r}")
        if transform is not None:
            kwargs[_TRANSFORM] = transform
        samples, _ = self(*args, num_samples=num_samples, key=key, antithetic=antithetic, **kwargs)
        return Prediction(mean(samples), samples)

    def mean_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output for the mean of all weights, mu."""
        with self._turns():
            self._check_turn("mean_forward")
            return self.module(*args, **kwargs)

    def kl_divergence(self) -> Tensor:
        """KL(q || p) of all weights in closed form: scalar, in nats.

        Raises:
            NotImplementedError: torch.distributions has no closed form for the prior.
        """
        mus, rhos = self._gaussians("kl_divergence")
        try:
            gaussian, family, others = self._prior_terms()
            if family or others:
                distributions = others or self._distributions()
                return self._sum_over(closed_form_kl, distributions, mus, rhos).to(arithmetic(rhos[0].dtype))
            return functional.foreach_gaussian_kl_divergence(*self._without_padding(mus, rhos, *gaussian)[0])
        except (RuntimeError, TypeError, ValueError):
            self._explain()
            raise

    def extra_repr(self) -> str:
        rhos = look_up(self.rho, self._weights, parametrized=True)
        num_weights = sum(rho.numel() - (rho[0].numel() if i in self._padding else 0) for i, rho in enumerate(rhos))
        parts = [f"{len(self._names)} tensors of {num_weights:,} weights are Gaussian"]
        for name, prior in (("mu_prior", self.mu_prior), ("std_prior", self.std_prior)):
            if prior is None:
                continue
            if isinstance(prior, nn.Module) or prior.requires_grad or prior.is_meta:
                kind = "one for each weight" if isinstance(prior, nn.Module) else "learned"
                parts.append(f"{name}: {'unknown' if getattr(prior, 'is_meta', False) else kind}")
            else:
                parts.append(f"{name}={prior.item():g}")
        return ", ".join(parts)

    @torch.no_grad()
    def sample_module(self, key: Tensor | None = None) -> nn.Module:
        """A plain copy of the module with one sample of the weights.

        Args:
            key: [2]; None draws one from torch's generator, or takes the frozen one.
        """
        mus, rhos = self._gaussians("sample_module")
        key = self._choose_one_key(key, rhos[0])
        module = self.mean_module()
        for parameter, x in zip(look_up(module, self._weights), self._draw(mus, rhos, key)[0]):
            parameter.copy_(x)
        return module

    def mean_module(self) -> nn.Module:
        """A plain copy of the module with the mean of all weights, mu."""
        with self._turns():
            self._check_turn("mean_module")
            return deep_copy(self.module)
