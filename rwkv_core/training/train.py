"""Train the model that ships inside rwkv-core: RWKV-4, 6 layers, 256 wide, on public-domain prose.

    pip install torch numba tokenizers
    python train.py tokenizer CORPUS            # byte-level BPE of 4,096 tokens -> tokenizer.json
    python train.py train CORPUS --minutes 110  # resumes from run/last.pt when it is there
    python train.py export                      # run/last.pt -> a BlinkDL-style float16 checkpoint

CORPUS is a folder of UTF-8 .txt files. The last 2% of every file (by bytes, cut at a paragraph)
is validation and is seen by neither the tokenizer nor the model.

Each row of a batch reads its own stream of text and carries its state from one step to the next
(gradients stop at the step's edge); now and then it jumps to a random place with an empty state.
So the model learns to start from nothing as well as to use a state older than its context.

Matrices of the blocks are trained with Muon (Jordan et al., 2024), all else with AdamW.
Initial values follow RWKV-LM's RWKV-4.
"""

import argparse
import math
import time
from pathlib import Path

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).parent
DATA = HERE.parent / "src" / "rwkv_core" / "data"
RUN = HERE / "run"
N_LAYER, N_EMBD, N_VOCAB, CONTEXT, BATCH = 6, 256, 4096, 256, 16


def split(corpus: Path) -> tuple[list[str], list[str]]:
    """Training and validation text of every file, cut at the paragraph nearest 98%."""
    train, valid = [], []
    for path in sorted(corpus.glob("*.txt")):
        raw = path.read_bytes()
        cut = raw.index(b"\n", int(len(raw) * 0.98)) + 1
        train.append(raw[:cut].decode())
        valid.append(raw[cut:].decode())
    return train, valid


def train_tokenizer(corpus: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(split(corpus)[0], trainer)
    DATA.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(DATA / "tokenizer.json"))


@numba.njit(parallel=True, fastmath=True, cache=True)
def wkv_forward(ew, eu, ek, v, a0, b0, y, a, b):
    n_batch, n_time, n_embd = v.shape
    for i in numba.prange(n_batch):
        a[i, 0] = a0[i]
        b[i, 0] = b0[i]
        for t in range(n_time):
            for c in range(n_embd):
                now = ek[i, t, c]
                bonus = eu[c] * now
                y[i, t, c] = (a[i, t, c] + bonus * v[i, t, c]) / (b[i, t, c] + bonus)
                a[i, t + 1, c] = ew[c] * a[i, t, c] + now * v[i, t, c]
                b[i, t + 1, c] = ew[c] * b[i, t, c] + now


@numba.njit(parallel=True, fastmath=True, cache=True)
def wkv_backward(ew, eu, ek, v, y, a, b, gy, gew, geu, gek, gv):
    n_batch, n_time, n_embd = v.shape
    for i in numba.prange(n_batch):
        ga = np.zeros(n_embd)
        gb = np.zeros(n_embd)
        for t in range(n_time - 1, -1, -1):
            for c in range(n_embd):
                now = ek[i, t, c]
                bonus = eu[c] * now
                g_num = gy[i, t, c] / (b[i, t, c] + bonus)
                g_den = -g_num * y[i, t, c]
                g_bonus = g_num * v[i, t, c] + g_den
                gek[i, t, c] = eu[c] * g_bonus + ga[c] * v[i, t, c] + gb[c]
                gv[i, t, c] = bonus * g_num + now * ga[c]
                geu[i, c] += now * g_bonus
                gew[i, c] += ga[c] * a[i, t, c] + gb[c] * b[i, t, c]
                ga[c] = ew[c] * ga[c] + g_num
                gb[c] = ew[c] * gb[c] + g_den


class WKV(torch.autograd.Function):
    """The plain (unstabilised) WKV sum in float64, where keys clamped to +-60 cannot overflow."""

    @staticmethod
    def forward(ctx, ew, eu, ek, v, a0, b0):
        n_batch, n_time, n_embd = v.shape
        y = torch.empty_like(v)
        a = torch.empty(n_batch, n_time + 1, n_embd, dtype=v.dtype)
        b = torch.empty_like(a)
        wkv_forward(*(x.detach().numpy() for x in (ew, eu, ek, v, a0, b0, y, a, b)))
        ctx.save_for_backward(ew, eu, ek, v, y, a, b)
        return y, a[:, -1], b[:, -1]

    @staticmethod
    def backward(ctx, gy, _ga, _gb):
        saved = ctx.saved_tensors
        n_batch, _, n_embd = gy.shape
        gew, geu = (torch.zeros(n_batch, n_embd, dtype=gy.dtype) for _ in range(2))
        gek, gv = torch.empty_like(gy), torch.empty_like(gy)
        arrays = (*saved, gy.contiguous(), gew, geu, gek, gv)
        wkv_backward(*(x.detach().numpy() for x in arrays))
        return gew.sum(0), geu.sum(0), gek, gv, None, None


def shifted(x, last):
    return torch.cat((last[:, None], x[:, :-1]), 1)


def mixed(x, before, mix):
    return torch.lerp(before, x, mix)


class TimeMix(nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        depth, fade = layer / (N_LAYER - 1), 1 - layer / N_LAYER
        place = torch.arange(N_EMBD) / (N_EMBD - 1)
        ramp = (torch.arange(N_EMBD) / N_EMBD).view(1, 1, -1)
        zigzag = (torch.arange(1, N_EMBD + 1) % 3 - 1) * 0.5
        self.time_decay = nn.Parameter(-5 + 8 * place ** (0.7 + 1.3 * depth))
        self.time_first = nn.Parameter(math.log(0.3) + zigzag)
        self.time_mix_k = nn.Parameter(ramp**fade)
        self.time_mix_v = nn.Parameter(ramp**fade + 0.3 * depth)
        self.time_mix_r = nn.Parameter(ramp ** (0.5 * fade))
        self.key, self.value, self.receptance, self.output = (
            nn.Linear(N_EMBD, N_EMBD, bias=False) for _ in range(4)
        )
        for matrix in (self.key, self.receptance, self.output):
            nn.init.zeros_(matrix.weight)
        nn.init.orthogonal_(self.value.weight)

    def forward(self, x, state):
        last, a, b = state
        before = shifted(x, last)
        k = self.key(mixed(x, before, self.time_mix_k)).double().clamp(-60, 60)
        v = self.value(mixed(x, before, self.time_mix_v)).double()
        r = self.receptance(mixed(x, before, self.time_mix_r)).sigmoid()
        decay = torch.exp(-torch.exp(self.time_decay.double()))
        y, a, b = WKV.apply(decay, self.time_first.double().exp(), k.exp(), v, a, b)
        return self.output(r * y.float()), (x[:, -1].detach(), a.detach(), b.detach())


class ChannelMix(nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        ramp = (torch.arange(N_EMBD) / N_EMBD).view(1, 1, -1) ** (1 - layer / N_LAYER)
        self.time_mix_k = nn.Parameter(ramp.clone())
        self.time_mix_r = nn.Parameter(ramp.clone())
        self.key = nn.Linear(N_EMBD, 4 * N_EMBD, bias=False)
        self.receptance = nn.Linear(N_EMBD, N_EMBD, bias=False)
        self.value = nn.Linear(4 * N_EMBD, N_EMBD, bias=False)
        nn.init.orthogonal_(self.key.weight, gain=2.0)
        for matrix in (self.receptance, self.value):
            nn.init.zeros_(matrix.weight)

    def forward(self, x, last):
        before = shifted(x, last)
        k = self.key(mixed(x, before, self.time_mix_k)).relu().square()
        r = self.receptance(mixed(x, before, self.time_mix_r)).sigmoid()
        return r * self.value(k), x[:, -1].detach()


class Block(nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(N_EMBD)
        self.ln1, self.ln2 = nn.LayerNorm(N_EMBD), nn.LayerNorm(N_EMBD)
        self.att, self.ffn = TimeMix(layer), ChannelMix(layer)

    def forward(self, x, state):
        if hasattr(self, "ln0"):
            x = self.ln0(x)
        y, time_state = self.att(self.ln1(x), state[:3])
        x = x + y
        y, last = self.ffn(self.ln2(x), state[3])
        return x + y, (*time_state, last)


class RWKV4(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(N_VOCAB, N_EMBD)
        self.blocks = nn.ModuleList(Block(i) for i in range(N_LAYER))
        self.ln_out = nn.LayerNorm(N_EMBD)
        self.head = nn.Linear(N_EMBD, N_VOCAB, bias=False)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        nn.init.orthogonal_(self.head.weight, gain=0.5)

    def forward(self, tokens, state):
        x, new = self.emb(tokens), []
        for block, block_state in zip(self.blocks, state, strict=True):
            x, s = block(x, block_state)
            new.append(s)
        return self.ln_out(x), new


class HeadLoss(torch.autograd.Function):
    """Mean cross entropy of `head @ x`, a slice at a time: the logits never exist as a whole."""

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


def empty_state(n_batch: int):
    zeros = [torch.zeros(n_batch, N_EMBD, dtype=t) for t in
             (torch.float32, torch.float64, torch.float64, torch.float32)]
    return [tuple(z.clone() for z in zeros) for _ in range(N_LAYER)]


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised by five Newton-Schulz steps.

    In float32 and with matrices of one shape stacked: torch.optim.Muon takes one matrix at a time
    in bfloat16, which is slower than the whole model's backward pass on a CPU without bfloat16.
    """

    def __init__(self, params, lr, weight_decay, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

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
                    x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315),
                                      x, beta=3.4445)
                for (p, _), update in zip(pairs, x, strict=True):
                    rows, columns = p.shape
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update if rows <= columns else update.T,
                           alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def optimizers(model: RWKV4, lr: float, muon_lr: float):
    matrices, slow, fast, big = [], [], [], []
    for name, p in model.named_parameters():
        if name in ("emb.weight", "head.weight"):
            big.append(p)
        elif p.ndim == 2:
            matrices.append(p)
        else:
            (fast if "time_" in name else slow).append(p)
    adam = torch.optim.AdamW(
        [{"params": big, "weight_decay": 0.1}, {"params": slow}, {"params": fast, "lr": 3 * lr}],
        lr=lr, betas=(0.9, 0.99), eps=1e-10, weight_decay=0.0,
    )
    return [Muon(matrices, muon_lr, weight_decay=0.1), adam]


def schedule(progress: float) -> float:
    """Warm-up, plateau, then straight to zero; `progress` is the spent share of the time."""
    return min(progress / 0.01, 1.0, (1 - progress) / 0.7)


@torch.no_grad()
def bits_per_byte(model: RWKV4, tokens: list[torch.Tensor], n_bytes: int, most: int = 10**9) -> float:
    """One running state over each file from its first token, which is not scored."""
    bits = 0.0
    for stream in tokens:
        stream = stream[:most]
        state = empty_state(1)
        for at in range(0, len(stream) - 1, CONTEXT):
            chunk = stream[at : at + CONTEXT + 1]
            x, state = model(chunk[None, :-1], state)
            bits += F.cross_entropy(model.head(x[0]), chunk[1:], reduction="sum").item() / math.log(2)
    return bits / n_bytes


def train(corpus: Path, minutes: float, lr: float, muon_lr: float, seed: int) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DATA / "tokenizer.json"))
    train_text, valid_text = split(corpus)
    ids = torch.tensor([i for t in train_text for i in tokenizer.encode(t).ids])
    valid = [torch.tensor(tokenizer.encode(t).ids) for t in valid_text]
    valid_bytes = sum(len(t.encode()) for t in valid_text)

    torch.manual_seed(seed)
    model = RWKV4()
    opts = optimizers(model, lr, muon_lr)
    rates = [g["lr"] for o in opts for g in o.param_groups]
    step, spent = 0, 0.0
    place = torch.randint(len(ids) - CONTEXT - 1, (BATCH,))
    state = empty_state(BATCH)
    RUN.mkdir(exist_ok=True)
    last = RUN / "last.pt"
    if last.exists():
        saved = torch.load(last)
        model.load_state_dict(saved["model"])
        for opt, opt_state in zip(opts, saved["opts"], strict=True):
            opt.load_state_dict(opt_state)
        step, spent, place, state = (saved[k] for k in ("step", "spent", "place", "state"))

    log = (HERE / "train.log").open("a", buffering=1)

    def say(line: str) -> None:
        print(line, flush=True)
        log.write(line + "\n")

    def save() -> None:
        beside = RUN / "last.pt.part"
        torch.save({"model": model.state_dict(), "opts": [o.state_dict() for o in opts],
                    "step": step, "spent": spent, "place": place, "state": state}, beside)
        beside.replace(last)

    n_params = sum(p.numel() for p in model.parameters())
    say(f"parameters {n_params:,}  tokens {len(ids):,}  validation bytes {valid_bytes:,}  "
        f"minutes {minutes:g}  lr {lr:g}  muon {muon_lr:g}  step {step}")
    losses: list[float] = []
    tick = saved_at = time.monotonic()
    offsets = torch.arange(CONTEXT + 1)
    while spent < minutes * 60:
        jump = (torch.rand(BATCH) < 1 / 12) | (place > len(ids) - CONTEXT - 1)
        place = torch.where(jump, torch.randint(len(ids) - CONTEXT - 1, (BATCH,)), place)
        for layer in state:
            for part in layer:
                part[jump] = 0
        batch = ids[place[:, None] + offsets]
        place = place + CONTEXT
        x, state = model(batch[:, :-1], state)
        loss = HeadLoss.apply(x.flatten(0, 1), model.head.weight, batch[:, 1:].flatten())
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = schedule(spent / (minutes * 60))
        for group, rate in zip((g for o in opts for g in o.param_groups), rates, strict=True):
            group["lr"] = rate * scale
        for opt in opts:
            opt.step()
        losses.append(loss.item())
        step += 1
        now = time.monotonic()
        spent, tick = spent + now - tick, now
        if step % 50 == 0:
            say(f"step {step}  minute {spent / 60:.1f}  loss {np.mean(losses[-50:]):.4f}  "
                f"tokens/s {step * BATCH * CONTEXT / spent:.0f}")
        if now - saved_at > 300:
            save()
            saved_at = time.monotonic()
        if step % 500 == 0:
            say(f"step {step}  validation {bits_per_byte(model, valid, valid_bytes):.4f} bits per byte")
            tick = time.monotonic()
    save()
    say(f"step {step}  validation {bits_per_byte(model, valid, valid_bytes):.4f} bits per byte (end)")


def export() -> None:
    """Write the newest weights as BlinkDL publishes them: a flat state dict, here in float16."""
    weights = torch.load(RUN / "last.pt")["model"]
    torch.save({name: w.half() for name, w in weights.items()}, DATA / "rwkv-4-prose-7m.pth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tokenizer").add_argument("corpus", type=Path)
    run = commands.add_parser("train")
    run.add_argument("corpus", type=Path)
    run.add_argument("--minutes", type=float, default=110)
    run.add_argument("--lr", type=float, default=2e-3)
    run.add_argument("--muon-lr", type=float, default=0.02)
    run.add_argument("--seed", type=int, default=1)
    commands.add_parser("export")
    args = parser.parse_args()
    if args.command == "tokenizer":
        train_tokenizer(args.corpus)
    elif args.command == "train":
        train(args.corpus, args.minutes, args.lr, args.muon_lr, args.seed)
    else:
        export()


if __name__ == "__main__":
    main()
