"""Cross entropy of a vocabulary's logits, without holding all logits in memory."""

import torch
import torch.nn.functional as F


class HeadLoss(torch.autograd.Function):
    """Mean cross entropy of `head @ x`, computed slice by slice."""

    @staticmethod
    def forward(ctx, x, head, targets):
        gx, g_head, total = torch.empty_like(x), torch.zeros_like(head), 0.0
        for rows in torch.arange(len(x)).split(1024):
            logits = x[rows] @ head.T
            total += F.cross_entropy(logits, targets[rows], reduction="sum")
            probs = logits.softmax(-1)
            probs[torch.arange(len(rows)), targets[rows]] -= 1
            torch.mm(probs, head, out=gx[rows[0] : rows[-1] + 1])
            g_head.addmm_(probs.T, x[rows])
        ctx.save_for_backward(gx / len(x), g_head / len(x))
        return total / len(x)

    @staticmethod
    def backward(ctx, g):
        gx, g_head = ctx.saved_tensors
        return g * gx, g * g_head, None
