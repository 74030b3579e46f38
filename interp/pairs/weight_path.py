"""The straight line from a baseline's weights to a cell's, and what each weight on it does to a number of the output.

`WeightPath.at(α)` makes the baseline's model compute with W + α(Ŵ − W). Nothing is copied: the mixture of a linear is
made when the linear runs, and made again when the gradient passes; what the gradient of a weight would be is handed to
an observer, one module at a time, and forgotten. Both models may be streamed: a pass then reads the parts of both once
on its way forward and once on its way back, where each block computes its activations again from what entered it.

Ŵ is the *effective* weight of the cell, AWQ's rescaling undone (`interp.pairs.scales`), where that gives back the
function
that the cell computes; both ends of the path then are the models' own. Rescaling that does not cancel cannot be undone:
such a cell needs the path to its tensors as they are.

Every module on the path is affine in its parameters: linears, embeddings, norms. Its output on the path is
M(x) + α·D(x) with D(x) = M̂(x) − M(x), so that a gradient g of its output says all: the share of each weight's change
in ∂/∂α is g·∂D.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from interp.errors import InputError
from interp.model import HookedModel
from interp.pairs.scales import Scales, unscaled_vector, unscaled_weight


@dataclass(frozen=True)
class ChangedParameter:
    """A parameter on the path.

    Attributes:
        module: the module it belongs to.
        leaf: its name there, "weight" or "bias".
        shape: in the model's layout.
        nbytes: that it takes.
        baseline: where the path begins.
        cell: where it ends.
        effective: the cell's tensor → the one at the end of the path (rescaling undone), both in the model's layout.
    """

    module: str
    leaf: str
    shape: torch.Size
    nbytes: int
    baseline: HookedModel
    cell: HookedModel
    effective: Callable[[Tensor], Tensor]

    @property
    def name(self) -> str:
        """The name of the parameter in the state dict."""
        return f"{self.module}.{self.leaf}"

    @property
    def before(self) -> Tensor:
        """The baseline's own tensor, not copied."""
        return self.baseline.parameter(self.name)

    def end(self) -> Tensor:
        """The parameter at α = 1, made anew at each call, where and in what the baseline's is."""
        return self.effective(self.cell.parameter(self.name)).to(self.before)

    def difference(self) -> Tensor:
        """End − beginning."""
        return self.end() - self.before

    def at(self, alpha: float) -> Tensor:
        """The parameter at α; exact at both ends."""
        return torch.lerp(self.before, self.end(), alpha)


class Observer(ABC):
    """Told what flows backward through each module on the path; what it is given it must not keep."""

    @abstractmethod
    def linear(
        self,
        module: str,
        inputs: Float[Tensor, "row pos in"],
        gradient: Float[Tensor, "row pos out"],
        weight: Float[Tensor, "out in"] | None,
        bias: Float[Tensor, " out"] | None,
    ) -> None:
        """A linear: its inputs, the gradient of its outputs, and the differences of its parameters that change."""

    @abstractmethod
    def affine(self, parameter: str, inputs: Tensor, products: Float[Tensor, "*row_pos_head channel"]) -> None:
        """A norm's or embedding's parameter: the gradient of the module's outputs times what the change adds to
        them, row after row. `inputs`: the module's, token ids for an embedding."""


class WeightPath:
    """From a baseline to a cell of it.

    Args:
        baseline: its model is what computes, on the path, inside `at`.
        cell: the other end.
        scales: the rescaling to undo; None for the path to the cell's tensors as they are.

    Attributes:
        changes: module → its parameters that differ; modules that do not differ are not on the path.
        linears: the modules on it that multiply by a matrix (the unembedding, too).

    Raises:
        InputError: a mixture of experts; what differs is a recurrence's own parameter.
    """

    def __init__(self, baseline: HookedModel, cell: HookedModel, scales: Scales | None = None) -> None:
        baseline.architecture.require_modules()
        self.baseline, self.cell = baseline, cell
        self.scales = scales or Scales()
        self._conv1d = baseline.architecture.conv1d
        self.changes: dict[str, list[ChangedParameter]] = {}
        for name, module in baseline.hf.named_modules():
            changes = [self._change(name, leaf, module) for leaf in module._parameters]
            if differing := [change for change in changes if change is not None]:
                _require_affine(differing[0], module)
                self.changes[name] = differing
        self.linears = [name for name in self.changes if is_linear(baseline.hf.get_submodule(name))]

    def difference(self, module: str) -> Float[Tensor, "out in"]:
        """Ŵ − W of a linear, rescaling undone: zeros where only its bias differs."""
        line = self._line(module, self.baseline.hf.get_submodule(module))
        return torch.zeros_like(line.matrix(0.0)) if line.weight is None else line.oriented(line.weight.difference())

    @contextmanager
    def at(self, alpha: float, observer: Observer | None = None) -> Iterator[None]:
        """The baseline's model computes with W + α(Ŵ − W) inside.

        Args:
            alpha: 0 is the baseline, 1 the cell.
            observer: told what flows back when something computed inside is differentiated; nothing is stored in any
                parameter's `grad`.
        """
        device = self.baseline.hf.device
        # Something must need a gradient for one to flow: no parameter does.
        anchor = torch.zeros((), device=device, requires_grad=observer is not None)
        with ExitStack() as restored:
            if observer is not None:
                restored.enter_context(_recomputed_blocks(self.baseline))
            for name in self.changes:
                module = self.baseline.hf.get_submodule(name)
                forward = self._forward(name, module, alpha, anchor, observer)
                restored.enter_context(_replaced_forward(module, forward))
            yield

    def _change(self, name: str, leaf: str, module: nn.Module) -> ChangedParameter | None:
        ours, theirs = module._parameters[leaf], self.cell.hf.get_submodule(name)._parameters[leaf]
        if ours is None or theirs is None:
            return None
        undo = self._undo(name, leaf, module)
        change = ChangedParameter(name, leaf, ours.shape, ours.nbytes, self.baseline, self.cell, undo)
        return None if torch.equal(change.end(), change.before) else change

    def _undo(self, name: str, leaf: str, module: nn.Module) -> Callable[[Tensor], Tensor]:
        scales, transposed = self.scales, self._conv1d and is_linear(module) and leaf == "weight"
        if is_linear(module) and leaf == "weight":
            return lambda tensor: _turn(unscaled_weight(_turn(tensor, transposed), name, scales), transposed)
        offset = self.baseline.architecture.norm_offset
        return lambda tensor: unscaled_vector(tensor, f"{name}.{leaf}", scales, offset)

    def _line(self, name: str, module: nn.Module) -> _Line:
        changed = {change.leaf: change for change in self.changes.get(name, [])}
        transposed = self._conv1d and not isinstance(module, nn.Linear)
        return _Line(name, self.baseline, changed.get("weight"), changed.get("bias"), transposed)

    def _forward(
        self, name: str, module: nn.Module, alpha: float, anchor: Tensor, observer: Observer | None
    ) -> Callable[..., Tensor]:
        if not is_linear(module):
            return _affine_forward(module, self.changes[name], alpha, anchor, observer)
        line = self._line(name, module)
        return lambda inputs: _LineFunction.apply(inputs, anchor, name, line, alpha, observer)


@dataclass(frozen=True)
class _Line:
    """A linear on the path."""

    name: str
    baseline: HookedModel
    weight: ChangedParameter | None
    bias: ChangedParameter | None
    transposed: bool

    def oriented(self, weight: Tensor) -> Float[Tensor, "out in"]:
        return _turn(weight, self.transposed)

    def matrix(self, alpha: float) -> Float[Tensor, "out in"]:
        weight = self.baseline.parameter(f"{self.name}.weight") if self.weight is None else self.weight.at(alpha)
        return self.oriented(weight)

    def offset(self, alpha: float) -> Float[Tensor, " out"] | None:
        if self.bias is not None:
            return self.bias.at(alpha)
        has_bias = self.baseline.hf.get_submodule(self.name)._parameters.get("bias") is not None
        return self.baseline.parameter(f"{self.name}.bias") if has_bias else None


class _LineFunction(torch.autograd.Function):
    """x ↦ x·W(α)ᵀ + b(α), which saves x alone and never makes a gradient of W."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, anchor: Tensor, name: str, line: _Line, alpha: float, observer: Observer | None
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.path = (name, line, alpha, observer)
        return nn.functional.linear(inputs, line.matrix(alpha), line.offset(alpha))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inputs,) = ctx.saved_tensors
        name, line, alpha, observer = ctx.path
        if observer is not None:
            observer.linear(
                name,
                inputs.reshape(len(inputs), -1, inputs.shape[-1]),
                gradient.reshape(len(gradient), -1, gradient.shape[-1]),
                None if line.weight is None else line.oriented(line.weight.difference()),
                None if line.bias is None else line.bias.difference(),
            )
        back = gradient @ line.matrix(alpha) if ctx.needs_input_grad[0] else None
        return back, None, None, None, None, None


class _Tap(torch.autograd.Function):
    """The identity, which shows to a callback the gradient and what else was given, kept as autograd keeps it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, see: Callable[..., None], *beside: Tensor) -> Tensor:
        ctx.see = see
        ctx.save_for_backward(*beside)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        beside = ctx.saved_tensors
        ctx.see(gradient, *beside)
        return gradient, None, None, *[None] * len(beside)


def _affine_forward(
    module: nn.Module, changes: list[ChangedParameter], alpha: float, anchor: Tensor, observer: Observer | None
) -> Callable[..., Tensor]:
    """M(x) + α·Σ D(x) over the changed parameters, D(x) being what the change of one adds."""
    original = module.forward

    def forward(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        value = begin = original(inputs, *args, **kwargs)
        added: dict[str, Tensor] = {}
        for change in changes:
            with _parameter(module, change.leaf, change.end()):
                added[change.name] = original(inputs, *args, **kwargs) - begin
            value = value + alpha * added[change.name]
        if observer is None:
            return value
        names = list(added)

        def see(gradient: Tensor, inputs: Tensor, *additions: Tensor) -> None:
            for name, addition in zip(names, additions, strict=True):
                observer.affine(name, inputs, gradient * addition)

        return _Tap.apply(value, anchor, see, inputs.detach(), *(addition.detach() for addition in added.values()))

    return forward


@contextmanager
def _recomputed_blocks(model: HookedModel) -> Iterator[None]:
    """A streamed model's blocks keep nothing for the pass back but what enters them."""
    with ExitStack() as restored:
        if model.streamed is not None:
            blocks = model.architecture.blocks
            for index, block in enumerate(model.hf.get_submodule(blocks)):
                forward = _recomputed(block.forward, partial(model.streamed.slot.hold, f"{blocks}.{index}"))
                restored.enter_context(_replaced_forward(block, forward))
        yield


def _recomputed(forward: Callable[..., Any], hold: Callable[[], None]) -> Callable[..., Any]:
    def held(*arguments: Any, **named: Any) -> Any:
        hold()
        return forward(*arguments, **named)

    return partial(checkpoint, held, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """The module runs `forward` inside; one it had of its own (accelerate sets one) is put back."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def _parameter(module: nn.Module, leaf: str, tensor: Tensor) -> Iterator[None]:
    """The module computes with another tensor inside."""
    parameters: dict[str, Any] = module._parameters
    original = parameters[leaf]
    parameters[leaf] = tensor
    try:
        yield
    finally:
        parameters[leaf] = original


def _require_affine(change: ChangedParameter, module: nn.Module) -> None:
    """Refuse what a recurrence reads without a module of its own: convolutions, decays, time steps."""
    if isinstance(module, nn.Conv1d) or next(module.children(), None) is not None:
        raise InputError(
            f"The parameter {change.name} differs between the two models, which are not affine in it",
            "differences in linears, embeddings and norms, as quantization makes them",
            "Quantize the baseline again and leave this parameter as it is",
        )


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix of its own: linears, GPT-2's Conv1D, the unembedding."""
    weight: Mapping[str, Tensor | None] = module._parameters
    matrix = weight.get("weight")
    return matrix is not None and matrix.ndim == 2 and not isinstance(module, nn.Embedding)


def block_linears(model: HookedModel) -> list[str]:
    """Names of the linears of all blocks, in the model's order.

    Raises:
        InputError: a mixture of experts.
    """
    model.architecture.require_modules()
    blocks = f"{model.architecture.blocks}."
    return [name for name, module in model.hf.named_modules() if name.startswith(blocks) and is_linear(module)]


def oriented_weight(model: HookedModel, linear: str) -> Float[Tensor, "out in"]:
    """A loaded linear's weight as [out, in], a view of its memory."""
    return _turn(model.hf.get_parameter(f"{linear}.weight").detach(), model.architecture.conv1d)


def _turn(weight: Tensor, transposed: bool) -> Tensor:
    return weight.T if transposed else weight
