"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321, algorithm 3).

The gradient G of a layer's weights, [outputs, kernel, inputs], has two covariances: L = E[G G'] over outputs and
R = E[G' G] over inputs; positions of the kernel count as samples of both. Adam works on G rotated into the
eigenvectors of L and R, and its step is rotated back. What has fewer than two of these dimensions, or too large
ones, is left to Adam.

Made for networks of many small layers on few cores: layers of one shape are one batch of matrices; kernels are not
rotated; the averages live in the rotated space, so a step rotates twice; covariances are gathered every few steps
and the eigenvectors follow by one step of orthogonal iteration every `interval` steps. Of several processes each does
the work, and holds the averages, of its share of the layers.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.network.device import ALONE, World

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
        interval: int = 5,
        gather: int = 1,
        eps: float = 1e-8,
        bf16: bool = False,
        world: World = ALONE,
    ) -> None:
        """`interval`: steps between bases; `gather`: between updates of the covariances; `bf16`: precision of the
        rotations, for gradients that were computed in it; `world`: processes that have the same gradients."""
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr}]
        self.betas, self.shampoo_beta, self.eps = betas, shampoo_beta, eps
        self.interval, self.gather, self.bf16 = interval, gather, bf16
        self.found_inf: Tensor | None = None
        self.world = world
        shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in self.param_groups[0]["params"]:
            shapes.setdefault(tuple(parameter.shape), []).append(parameter)
        self.batches = [_Batch(members) for members in shapes.values()]
        self.owners = share_work([batch.work for batch in self.batches], world.size)
        self.taken = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        for batch in self.batches:
            for parameter in batch.members:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step of every parameter that has a gradient; all of one shape have one or none has. All processes call
        it together."""
        lr = float(self.param_groups[0]["lr"])
        skip = self.found_inf
        if skip is not None and skip.device.type == "cpu":
            if skip:
                return
            skip = None  # elsewhere whether to skip is not known to the host, and asking would wait
        for batch in self._of(self.world.rank):
            batch.step(self, lr, None if skip is None else 1 - skip)
        for rank in range(self.world.size):
            self.world.spread([parameter for batch in self._of(rank) for parameter in batch.members], rank)
        self.taken += 1

    def _of(self, rank: int) -> list["_Batch"]:
        return [batch for batch, owner in zip(self.batches, self.owners, strict=True) if owner == rank]

    def state_dict(self) -> dict[str, Any]:
        """All processes call it together; the first one's is whole."""
        parts = self.world.collect([batch.state for batch in self._of(self.world.rank)])
        each = [iter(part) for part in parts]
        states = [next(each[owner]) for owner in self.owners] if each else []
        return {"taken": self.taken, "batches": [{k: v.cpu() for k, v in state.items()} for state in states]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = int(state["taken"])
        for batch, owner, saved in zip(self.batches, self.owners, state["batches"], strict=True):
            if owner == self.world.rank:
                batch.load(saved)


def share_work(work: list[int], processes: int) -> list[int]:
    """The process that each piece goes to: the largest first, each to the one that has least."""
    loads, owners = [0] * processes, [0] * len(work)
    for k in sorted(range(len(work)), key=lambda k: -work[k]):
        owners[k] = loads.index(min(loads))
        loads[owners[k]] += work[k]
    return owners


class _Batch:
    """Parameters of one shape, as one batch [n, outputs, kernel, inputs] of weights or [n, size] of anything else."""

    def __init__(self, members: list[nn.Parameter]) -> None:
        self.members = members
        shape = members[0].shape
        self.matrix = len(shape) in (2, 4)
        self.sides = [s for s in ("L", "R") if self.matrix and 1 < shape["LR".index(s)] <= LARGEST_SIDE]
        #: About what a step of it takes: elements, and their products with eigenvectors.
        ends = (shape[0], shape[1]) if self.matrix else (0, 0)
        factors = sum(end for end, side in zip(ends, "LR", strict=True) if side in self.sides)
        self.work = len(members) * members[0].numel() * (16 + factors)
        #: m and v; for each side its covariance and, as Q and its name, the eigenvectors.
        self.state: dict[str, Tensor] = {}

    def load(self, state: dict[str, Tensor]) -> None:
        device = self.members[0].device
        self.state = {name: value.to(device, copy=True) for name, value in state.items()}

    def _stack(self, bf16: bool) -> Tensor | None:
        gradients = [p.grad for p in self.members if p.grad is not None]
        if len(gradients) != len(self.members):
            return None
        first = gradients[0]
        if self.matrix and first.dim() == 4:  # in memory [o, h, w, i] already, if channels_last
            gradients = [g.permute(0, 2, 3, 1).flatten(1, 2) for g in gradients]
        elif self.matrix:
            gradients = [g.unsqueeze(1) for g in gradients]
        else:
            gradients = [g.flatten() for g in gradients]
        kind = torch.bfloat16 if bf16 and self.sides else first.dtype
        stacked = torch.empty(len(gradients), *gradients[0].shape, dtype=kind, device=first.device)
        torch._foreach_copy_(list(stacked.unbind()), gradients)
        return stacked

    def step(self, optimizer: SOAP, lr: float, ok: Tensor | None) -> None:
        """`ok`, if given, is 0 where the step must change nothing."""
        g = self._stack(optimizer.bf16)
        if g is None:
            return
        state, kind = self.state, self.members[0].dtype
        if not state:
            state.update((name, torch.zeros(g.shape, dtype=kind, device=g.device)) for name in ("m", "v"))
        if ok is not None:
            g = torch.where(ok > 0, g, 0.0)
        if optimizer.taken % optimizer.gather == 0:
            self._gather(g, 1 - optimizer.shampoo_beta, ok)
        if optimizer.taken % optimizer.interval == 0:
            self._turn()
        r = self._rotate(g, back=False).to(kind)
        beta1, beta2 = optimizer.betas
        state["m"].lerp_(r, _weight(1 - beta1, ok))
        state["v"].lerp_(r.square_(), _weight(1 - beta2, ok))
        first, second = (1 - beta ** (optimizer.taken + 1) for beta in optimizer.betas)  # Adam's, for a cold start
        root = state["v"].sqrt().add_(optimizer.eps * second**0.5)
        update = torch.div(state["m"], root, out=root)
        if ok is not None:
            update.mul_(ok)
        parts = self._unstack(self._rotate(update.to(g.dtype), back=True))
        torch._foreach_add_(list[Tensor](self.members), parts, alpha=-lr * second**0.5 / first)

    def _unstack(self, update: Tensor) -> list[Tensor]:
        shape = self.members[0].shape
        if self.matrix and len(shape) == 4:
            update = update.unflatten(2, shape[2:]).permute(0, 1, 4, 2, 3)
        return [u.view(shape) if not self.matrix else u.reshape(shape) for u in update.unbind()]

    def _gather(self, g: Tensor, weight: float, ok: Tensor | None) -> None:
        """Move the covariances towards those of this gradient."""
        for side in self.sides:
            rows = g.flatten(2) if side == "L" else g.flatten(1, 2).mT
            covariance = (rows @ rows.mT).to(self.state["m"].dtype)
            if side in self.state:
                self.state[side].lerp_(covariance, _weight(weight, ok))
            else:
                self.state[side] = covariance

    def _turn(self) -> None:
        """Let the eigenvectors follow the covariances; the averages go along."""
        state, old = self.state, {}
        for side in self.sides:
            covariance, name = state[side], f"Q{side}"
            if name not in state:
                # in double precision: in single, LAPACK finds NaN for small matrices whose rows are mostly zero
                state[name] = torch.linalg.eigh(covariance.double())[1].flip(2).to(covariance.dtype)
                continue
            old[side] = q = state[name]
            order = (q * (covariance @ q)).sum(1).argsort(1, descending=True)  # orthogonal iteration wants this order
            dim = 1 if side == "L" else 3
            state["v"] = torch.stack([v.index_select(dim - 1, o) for v, o in zip(state["v"], order, strict=True)])
            state[name] = torch.linalg.qr(covariance @ torch.take_along_dim(q, order.unsqueeze(1), 2))[0]
        if old:
            turned = {side: q.mT @ state[f"Q{side}"] for side, q in old.items()}
            state["m"] = _apply(state["m"], turned.get("L"), turned.get("R"))

    def _rotate(self, g: Tensor, back: bool) -> Tensor:
        """Into the eigenvectors' space, or back."""
        left, right = (self.state.get(f"Q{side}") for side in "LR")
        if back:
            left, right = (q if q is None else q.mT for q in (left, right))
        return _apply(g, left, right)


def _weight(weight: float, ok: Tensor | None) -> float | Tensor:
    return weight if ok is None else weight * ok


def _apply(g: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """left' g right for g [n, outputs, kernel, inputs], for each position of the kernel."""
    if left is not None:
        g = (left.mT.to(g.dtype) @ g.flatten(2)).view_as(g)
    if right is not None:
        g = (g.flatten(1, 2) @ right.to(g.dtype)).view_as(g)
    return g
