"""One to many: a picture is described in words.

Pictures of one or two coloured shapes are drawn here; "a red circle above a blue cross" is such a caption. A small
convolutional network makes a vector v of the picture, and a recurrent one writes: from START, each word is the input of
the next step, until END. The state sees the picture as well as the word x and the state before:

    h' = tanh(W·x + R·h + V·v)

W·x + V·v is one matrix times x and v side by side, so this is fastrnn.RNN with v put beside each word: no custom cell
is needed (`fastrnn.cell` is for steps that do more). Karpathy & Fei-Fei, Deep visual-semantic alignments for
generating image descriptions, 2015 (arXiv:1412.2306), have this equation with V·v at the first step alone, and found
that better; both are trained here. Some captions are kept out of the training.

    python examples/captioning.py
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrnn

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
SHAPES = ("square", "circle", "triangle", "cross")
WORDS = ("START", "END", "a", "above", "left", "of", *COLOURS, *SHAPES)
IDS = {word: number for number, word in enumerate(WORDS)}
THINGS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
PAIRS = [f"{one} {where} {other}" for one in THINGS for where in ("above", "left of") for other in THINGS]
SIDE = 16  # pixels


def paint(picture: np.ndarray, thing: str, at: np.ndarray, rng: np.random.Generator) -> None:
    """Puts a thing of random size at (row, column) of a picture (3, SIDE, SIDE)."""
    _, colour, shape = thing.split()
    (down, right), r = np.mgrid[:SIDE, :SIDE] - at.reshape(2, 1, 1), rng.uniform(2.5, 3.5)
    inside = {
        "square": (abs(down) <= r) & (abs(right) <= r),
        "circle": down**2 + right**2 <= r**2,
        "triangle": (abs(down) <= r) & (abs(right) <= (down + r) / 2),
        "cross": (abs(down) <= r) & (abs(right) <= r) & (np.minimum(abs(down), abs(right)) <= 0.8),
    }[shape]
    picture[:, inside] = np.array(COLOURS[colour]).reshape(3, 1)


def draw(caption: str, rng: np.random.Generator) -> np.ndarray:
    """A picture for a caption, (3, SIDE, SIDE), with noise."""
    picture = np.zeros((3, SIDE, SIDE))
    things = caption.replace("above", "|").replace("left of", "|").split(" | ")
    offset = (len(things) - 1) * np.array([4.0, 0.0] if "above" in caption else [0.0, 4.0])  # from the middle
    for thing, side in zip(things, (-1, 1), strict=False):
        paint(picture, thing, SIDE / 2 + side * offset + rng.uniform(-1, 1, 2), rng)
    return picture + 0.1 * rng.standard_normal(picture.shape)


def examples(captions: list[str], count: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
    """So many pictures (B, 3, SIDE, SIDE) of captions drawn from these, and the captions."""
    chosen = [str(caption) for caption in rng.choice(captions, count)]
    return torch.from_numpy(np.stack([draw(caption, rng) for caption in chosen])).float(), chosen


class Captioner(nn.Module):
    def __init__(self, hidden: int, every_step: bool) -> None:
        super().__init__()
        self.every_step = every_step
        self.look = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (SIDE // 4) ** 2, 64), nn.ReLU()),
        )
        self.words = nn.Embedding(len(WORDS), 16)
        self.recurrent = fastrnn.RNN(16 + 64, hidden)  # its matrix is W and V side by side
        self.readout = nn.Linear(hidden, len(WORDS))

    def forward(self, pictures: Tensor, words: Tensor) -> Tensor:
        """Logits (T, B, words) for what follows each word (T, B), START the first."""
        seen = self.look(pictures).expand(len(words), -1, -1)  # (T, B, 64)
        if not self.every_step:
            seen = torch.cat([seen[:1], torch.zeros_like(seen[1:])])
        return self.readout(self.recurrent(torch.cat([self.words(words), seen], -1))[0])

    @torch.no_grad()
    def describe(self, pictures: Tensor, longest: int = 10) -> list[str]:
        """The likeliest word at each step, until END."""
        seen, state, found = self.look(pictures), None, []
        word = torch.full((len(pictures),), IDS["START"])
        for _ in range(longest):
            y, state = self.recurrent.step(torch.cat([self.words(word), seen], -1), state)
            word = self.readout(y).argmax(-1)
            found.append(word)
            if not self.every_step:
                seen = torch.zeros_like(seen)
        return [" ".join(WORDS[i] for i in row).partition(" END")[0] for row in torch.stack(found, 1).tolist()]


def train(model: Captioner, pictures: Tensor, captions: list[str], args: argparse.Namespace) -> None:
    ids = [torch.tensor([IDS[word] for word in ("START", *caption.split(), "END")]) for caption in captions]
    words = nn.utils.rnn.pad_sequence(ids, padding_value=IDS["END"])  # (T, B); END is also what follows END
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for step in range(1, args.steps + 1):
        rows = torch.randint(len(pictures), (64,))
        logits = model(pictures[rows], words[:-1, rows])
        loss = F.cross_entropy(logits.flatten(0, 1), words[1:, rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(args.steps // 4, 1) == 0:
            print(f"  step {step:,}: loss {loss.item():.4f}", flush=True)


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="Pictures are described.")
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default: 2000)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate (default: 2e-3)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--quick", action="store_true", help="fewer steps, within seconds")
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.lr = 300, 4e-3
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    pairs = list(rng.permutation(PAIRS))
    known, unknown = [*THINGS * 8, *pairs[100:]], pairs[:100]
    data, old, new = examples(known, 6000, rng), examples(known, 500, rng), examples(unknown, 500, rng)
    found = {}
    for name, every_step in (("every step", True), ("the first step", False)):
        print(f"the picture is seen at {name}")
        torch.manual_seed(args.seed)
        model = Captioner(128, every_step)
        train(model, *data, args)
        for which, (pictures, captions) in (("trained on", old), ("never trained on", new)):
            answers = model.describe(pictures)
            right = sum(answer == caption for answer, caption in zip(answers, captions, strict=True)) / len(captions)
            print(f"  new pictures, captions {which}: {right:.1%} are right, word for word")
            print(f"    {captions[0]} -> {answers[0]}")
            found[f"{name}, {which}"] = right
    return found


if __name__ == "__main__":
    main()
