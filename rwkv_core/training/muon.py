"""Muon (Jordan et al., 2024): momentum whose updates of matrices are made orthogonal."""

import torch


class Muon(torch.optim.Optimizer):
    """An optimizer with Nesterov momentum, which five Newton-Schulz steps make orthogonal.

    It computes in float32, and stacks all matrices of one shape. torch.optim.Muon computes in
    bfloat16, one matrix after the other. On a CPU without bfloat16, that is slower than the model's
    backward pass.
    """

    def __init__(self, params, lr, weight_decay, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            stacks: dict[torch.Size, list] = {}
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(buffer, group["momentum"])
                wide = g if g.shape[0] <= g.shape[1] else g.T
                stacks.setdefault(wide.shape, []).append((p, wide))
            for pairs in stacks.values():
                x = torch.stack([wide for _, wide in pairs])
                x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
                for _ in range(5):
                    gram = x @ x.mT
                    step = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
                    x = torch.baddbmm(x, step, x, beta=3.4445)
                for (p, _), update in zip(pairs, x, strict=True):
                    rows, columns = p.shape
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    rate = group["lr"] * max(1, rows / columns) ** 0.5
                    p.add_(update if rows <= columns else update.T, alpha=-rate)
