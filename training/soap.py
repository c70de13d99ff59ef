"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321, algorithm 3).

The gradient G of a layer's weights, [outputs, kernel, inputs], has two covariances: L = E[G G'] over outputs and
R = E[G' G] over inputs; positions of the kernel count as samples of both. Adam works on G rotated into the
eigenvectors of L and R, and its step is rotated back. What has fewer than two of these dimensions, or too large
ones, is left to Adam.

Made for networks of many small layers on few cores: layers of one shape are one batch of matrices; kernels are not
rotated; the averages live in the rotated space, so a step rotates twice; covariances are gathered every few steps
and the eigenvectors follow by one step of orthogonal iteration every `interval` steps.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

#: Sides of a layer above this have no covariance: a 1,024 x 1,024 eigenbasis costs more than it gains.
LARGEST_SIDE = 1024


class SOAP:
    """An optimizer as training needs one: `param_groups` for the rate, `step`, `zero_grad`, `state_dict`.

    `found_inf`, if set, is 1 where the step must change nothing; it is read on the device (as fused Adam reads it).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float = 0.95,
        interval: int = 10,
        gather: int = 2,
        eps: float = 1e-8,
        bf16: bool = False,
    ) -> None:
        """`interval`: steps between bases; `gather`: between updates of the covariances; `bf16`: precision of the
        rotations, for gradients that were computed in it."""
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr}]
        self.betas, self.shampoo_beta, self.eps = betas, shampoo_beta, eps
        self.interval, self.gather, self.bf16 = interval, gather, bf16
        self.found_inf: Tensor | None = None
        shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in self.param_groups[0]["params"]:
            shapes.setdefault(tuple(parameter.shape), []).append(parameter)
        self.batches = [_Batch(members) for members in shapes.values()]
        self.taken = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        for batch in self.batches:
            for parameter in batch.members:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step of every parameter that has a gradient; all of one shape have one or none has."""
        lr = float(self.param_groups[0]["lr"])
        ok = 1.0 if self.found_inf is None else 1 - self.found_inf
        for batch in self.batches:
            batch.step(self, lr, ok)
        self.taken += 1

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "batches": [batch.state for batch in self.batches]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = int(state["taken"])
        for batch, saved in zip(self.batches, state["batches"], strict=True):
            batch.load(saved)


class _Batch:
    """Parameters of one shape, as one batch [n, outputs, kernel, inputs] of weights or [n, size] of anything else."""

    def __init__(self, members: list[nn.Parameter]) -> None:
        self.members = members
        shape = members[0].shape
        self.matrix = len(shape) in (2, 4)
        self.sides = [s for s in ("L", "R") if self.matrix and 1 < shape["LR".index(s)] <= LARGEST_SIDE]
        #: count (steps that were not skipped), m and v; for each side its covariance and eigenvectors Q.
        self.state: dict[str, Tensor] = {}

    def load(self, state: dict[str, Tensor]) -> None:
        device = self.members[0].device
        self.state = {name: value.to(device) for name, value in state.items()}

    def _stack(self) -> Tensor | None:
        gradients = [p.grad for p in self.members if p.grad is not None]
        if len(gradients) != len(self.members):
            return None
        if self.matrix and gradients[0].dim() == 4:  # in memory [o, h, w, i] already, if channels_last
            return torch.stack([g.permute(0, 2, 3, 1) for g in gradients]).flatten(2, 3)
        stacked = torch.stack(gradients)
        return stacked.unsqueeze(2) if self.matrix else stacked.flatten(1)

    def step(self, optimizer: SOAP, lr: float, ok: Tensor | float) -> None:
        g = self._stack()
        if g is None:
            return
        state, (beta1, beta2) = self.state, optimizer.betas
        if not state:
            state.update(count=g.new_zeros(()), m=torch.zeros_like(g), v=torch.zeros_like(g))
        if not isinstance(ok, float):
            g = torch.where(ok > 0, g, 0.0)
        if optimizer.taken % optimizer.gather == 0 or not state["count"]:
            self._gather(g, optimizer, ok)
        if optimizer.taken % optimizer.interval == 0:
            self._turn()
        r = self._rotate(g, optimizer.bf16, back=False)
        state["count"] += ok
        state["m"].lerp_(r, (1 - beta1) * torch.as_tensor(ok))
        state["v"].lerp_(r.square_(), (1 - beta2) * torch.as_tensor(ok))
        root = (state["v"] / (1 - beta2 ** state["count"])).sqrt_().add_(optimizer.eps)
        update = root.reciprocal_().mul_(state["m"]).mul_(-lr * ok / (1 - beta1 ** state["count"]))
        torch._foreach_add_(self.members, self._unstack(self._rotate(update, optimizer.bf16, back=True)))

    def _unstack(self, update: Tensor) -> list[Tensor]:
        shape = self.members[0].shape
        if self.matrix and len(shape) == 4:
            update = update.unflatten(2, shape[2:]).permute(0, 1, 4, 2, 3)
        return [u.view(shape) if not self.matrix else u.reshape(shape) for u in update.unbind()]

    def _gather(self, g: Tensor, optimizer: SOAP, ok: Tensor | float) -> None:
        """Move the covariances towards those of this gradient."""
        weight = (1 - optimizer.shampoo_beta) * torch.as_tensor(ok)
        for side in self.sides:
            rows = g.flatten(2) if side == "L" else g.flatten(1, 2).mT
            covariance = rows @ rows.mT
            if side in self.state:
                self.state[side].lerp_(covariance, weight)
            else:
                self.state[side] = covariance

    def _turn(self) -> None:
        """Let the eigenvectors follow the covariances; the averages go along."""
        state, old = self.state, {}
        for side in self.sides:
            covariance, name = state[side], f"Q{side}"
            if name not in state:
                state[name] = torch.linalg.eigh(covariance)[1].flip(2)
                continue
            old[side] = q = state[name]
            order = (q * (covariance @ q)).sum(1).argsort(1, descending=True)  # orthogonal iteration wants this order
            dim = 1 if side == "L" else 3
            state["v"] = torch.stack([v.index_select(dim - 1, o) for v, o in zip(state["v"], order, strict=True)])
            state[name] = torch.linalg.qr(covariance @ torch.take_along_dim(q, order.unsqueeze(1), 2))[0]
        if old:
            turned = {side: q.mT @ state[f"Q{side}"] for side, q in old.items()}
            state["m"] = _apply(state["m"], turned.get("L"), turned.get("R"))

    def _rotate(self, g: Tensor, bf16: bool, back: bool) -> Tensor:
        """Into the eigenvectors' space, or back."""
        left, right = (self.state.get(f"Q{side}") for side in "LR")
        if left is None and right is None:
            return g.clone() if not back else g
        if back:
            left, right = (q if q is None else q.mT for q in (left, right))
        if bf16:
            parts = (q if q is None else q.to(torch.bfloat16) for q in (left, right))
            return _apply(g.to(torch.bfloat16), *parts).float()
        return _apply(g, left, right)


def _apply(g: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """left' g right for g [n, outputs, kernel, inputs], for each position of the kernel."""
    if left is not None:
        g = (left.mT @ g.flatten(2)).view_as(g)
    if right is not None:
        g = (g.flatten(1, 2) @ right).view_as(g)
    return g
