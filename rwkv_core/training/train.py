"""Train the bundled models (RWKV-4, RWKV-7) and smaller ones of RWKV-5.2 and 6, on prose.

    pip install torch numba tokenizers
    python train.py tokenizer CORPUS                # a byte-level BPE of 4,096 tokens
    python train.py train rwkv7 CORPUS --minutes 96 # resumes from run/rwkv7.pt if it is there
    python train.py export rwkv7                    # run/rwkv7.pt -> BlinkDL's layout in float16

CORPUS is a folder of UTF-8 .txt files. The last 2% of every file (by bytes, cut at a paragraph)
is for validation. Neither the tokenizer nor the model sees this part.

There are 256 streams of text. Each step picks a few streams at random and continues each stream
from its last state. Gradients do not cross from one step to the next. Now and then a stream jumps
to a random place and starts with an empty state. So the model learns both to start from an empty
state and to use a state that is older than its context. With only a few streams, all continued in
every step, an RWKV-7 of this size adapted to the pages that it was reading: its loss was 3.7 nats
per token on these pages, and 4.3 on other pages of the training text.
"""

import argparse
import importlib
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from head_loss import HeadLoss
from muon import Muon

HERE = Path(__file__).parent
DATA = HERE.parent / "src" / "rwkv_core" / "data"
RUN = HERE / "run"
CONTEXT, N_VOCAB, STREAMS = 256, 4096, 256
# The module and its class, and the file that the model is exported to.
MODELS = {
    "rwkv4": ("rwkv4", "RWKV4", DATA / "rwkv-4-prose-7m.pth"),
    "rwkv5.2": ("rwkv5_and_6", "Eagle", RUN / "rwkv-5.2-prose-2m.pth"),
    "rwkv6": ("rwkv5_and_6", "Finch", RUN / "rwkv-6-prose-2m.pth"),
    "rwkv7": ("rwkv7", "RWKV7", DATA / "rwkv-7-prose-7m.pth"),
}


def split(corpus: Path) -> tuple[list[str], list[str]]:
    """Return the training and validation text of every file, cut at the paragraph nearest 98%."""
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


def optimizers(model: torch.nn.Module, lr: float, muon_lr: float):
    matrices, slow, fast, big = [], [], [], []
    for name, p in model.named_parameters():
        if name in ("emb.weight", "head.weight"):
            big.append(p)
        elif p.ndim == 2 and name.endswith(".weight"):
            matrices.append(p)
        else:
            (fast if "time_" in name or name.endswith(".w0") else slow).append(p)
    adam = torch.optim.AdamW(
        [{"params": big, "weight_decay": 0.1}, {"params": slow}, {"params": fast, "lr": 3 * lr}],
        lr=lr,
        betas=(0.9, 0.99),
        eps=1e-10,
        weight_decay=0.0,
    )
    return [Muon(matrices, muon_lr, weight_decay=0.1), adam]


def schedule(progress: float) -> float:
    """Return the factor of the learning rate: warm-up, plateau, then a straight line to zero.

    `progress` is the share of the time that has passed.
    """
    return min(progress / 0.01, 1.0, (1 - progress) / 0.7)


@torch.no_grad()
def bits_per_byte(model, empty_state, streams: list[torch.Tensor], n_bytes: int) -> float:
    """Return the bits per byte, with one running state per file. First tokens are not scored."""
    nats = 0.0
    for stream in streams:
        state = empty_state(1)
        for at in range(0, len(stream) - 1, CONTEXT):
            chunk = stream[at : at + CONTEXT + 1]
            x, state = model(chunk[None, :-1], state)
            nats += F.cross_entropy(model.head(x[0]), chunk[1:], reduction="sum").item()
    return nats / math.log(2) / n_bytes


def train(
    name: str, corpus: Path, minutes: float, n_batch: int, lr: float, muon_lr: float, seed: int
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DATA / "tokenizer.json"))
    train_text, valid_text = split(corpus)
    ids = torch.tensor([i for t in train_text for i in tokenizer.encode(t).ids])
    valid = [torch.tensor(tokenizer.encode(t).ids) for t in valid_text]
    valid_bytes = sum(len(t.encode()) for t in valid_text)

    # Products of bfloat16, summed in float32, where the CPU has them.
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(seed)
    module_name, class_name, _ = MODELS[name]
    module = importlib.import_module(module_name)
    empty_state = module.empty_state
    model = getattr(module, class_name)()
    opts = optimizers(model, lr, muon_lr)
    rates = [g["lr"] for o in opts for g in o.param_groups]
    step, spent = 0, 0.0
    place = torch.randint(len(ids) - CONTEXT - 1, (STREAMS,))
    state = empty_state(STREAMS)
    RUN.mkdir(exist_ok=True)
    last = RUN / f"{name}.pt"
    if last.exists():
        saved = torch.load(last)
        model.load_state_dict(saved["model"])
        for opt, opt_state in zip(opts, saved["opts"], strict=True):
            opt.load_state_dict(opt_state)
        step, spent, place, state = (saved[k] for k in ("step", "spent", "place", "state"))

    log = (HERE / f"train-{name}.log").open("a", buffering=1)

    def say(line: str) -> None:
        print(line, flush=True)
        log.write(line + "\n")

    def measure() -> float:
        return bits_per_byte(model, empty_state, valid, valid_bytes)

    def save() -> None:
        beside = RUN / f"{name}.pt.part"
        torch.save(
            {
                "model": model.state_dict(),
                "opts": [o.state_dict() for o in opts],
                "step": step,
                "spent": spent,
                "place": place,
                "state": state,
            },
            beside,
        )
        beside.replace(last)

    n_params = sum(p.numel() for p in model.parameters())
    say(
        f"parameters {n_params:,}  tokens {len(ids):,}  validation bytes {valid_bytes:,}  "
        f"minutes {minutes:g}  lr {lr:g}  muon {muon_lr:g}  step {step}"
    )
    losses: list[float] = []
    tick = saved_at = time.process_time()
    offsets = torch.arange(CONTEXT + 1)
    while spent < minutes * 60:
        rows = torch.randperm(STREAMS)[:n_batch]
        start, before = place[rows], [tuple(part[rows] for part in layer) for layer in state]
        jump = (torch.rand(n_batch) < 1 / 12) | (start > len(ids) - CONTEXT - 1)
        start = torch.where(jump, torch.randint(len(ids) - CONTEXT - 1, (n_batch,)), start)
        for layer in before:
            for part in layer:
                part[jump] = 0
        batch = ids[start[:, None] + offsets]
        x, after = model(batch[:, :-1], before)
        place[rows] = start + CONTEXT
        for layer, new in zip(state, after, strict=True):
            for part, values in zip(layer, new, strict=True):
                part[rows] = values
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
        now = time.process_time()  # of this process: others slow it down
        spent, tick = spent + now - tick, now
        if step % 50 == 0:
            say(
                f"step {step}  minute {spent / 60:.1f}  loss {np.mean(losses[-50:]):.4f}  "
                f"tokens/s {step * n_batch * CONTEXT / spent:.0f}"
            )
        if now - saved_at > 300:
            save()
            saved_at = time.process_time()
        if step % 500 == 0:
            say(f"step {step}  validation {measure():.4f} bits per byte")
            tick = time.process_time()
    save()
    say(f"step {step}  validation {measure():.4f} bits per byte (end)")


def export(name: str) -> None:
    """Write the newest weights as BlinkDL publishes them: a flat state dict, here in float16."""
    weights = torch.load(RUN / f"{name}.pt")["model"]
    torch.save({key: w.half() for key, w in weights.items()}, MODELS[name][2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tokenizer").add_argument("corpus", type=Path)
    run = commands.add_parser("train")
    run.add_argument("model", choices=MODELS)
    run.add_argument("corpus", type=Path)
    run.add_argument("--minutes", type=float, default=96)
    run.add_argument("--batch", type=int, default=16, help="rows of 256 tokens a step")
    run.add_argument("--lr", type=float, default=2e-3)
    run.add_argument("--muon-lr", type=float, default=0.02)
    run.add_argument("--seed", type=int, default=1)
    commands.add_parser("export").add_argument("model", choices=MODELS)
    args = parser.parse_args()
    if args.command == "tokenizer":
        train_tokenizer(args.corpus)
    elif args.command == "train":
        train(args.model, args.corpus, args.minutes, args.batch, args.lr, args.muon_lr, args.seed)
    else:
        export(args.model)


if __name__ == "__main__":
    main()
