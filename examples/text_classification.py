"""Many to one: is a review good or bad? Reviews of different lengths, in which "not" and its kin turn words round.

A small grammar writes reviews of one, three or five parts such as "the plot was not at all dull". Each part is for or
against the film, in three of ten with a negation, and the majority decides. A bag of words, which only counts them,
sees most of it; a network that reads them in order can see all. Pang, Lee & Vaithyanathan, Thumbs up?, 2002,
classified film reviews by their words; Socher et al., Recursive deep models for semantic compositionality, 2013, look
into negation.

The last state of an LSTM goes to the classifier. `lengths=` says where each review ends, so nothing is sorted or
packed, and `embedding=` takes the ids of the words as they are.

    python examples/text_classification.py
"""

from __future__ import annotations

import argparse
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import fastrnn

SUBJECTS, GOOD, BAD = (
    words.split()
    for words in (
        "plot cast music ending dialogue camera pace beginning title",
        "good clever moving lovely gripping funny fine superb fresh honest",
        "bad dull clumsy silly boring tired poor awful stale false",
    )
)
STRAIGHT = ["was", "was really", "was , all in all ,", "is , as my friends say ,", "was from first to last"]
TURNED = ["was not", "was never", "was not at all", "is hardly what i call", "was , all in all , anything but"]
WORDS = sorted(
    {word for part in SUBJECTS + GOOD + BAD + STRAIGHT + TURNED for word in part.split()} | {"the", "but", "and"}
)
IDS = {word: number for number, word in enumerate(WORDS)}


def write_review(parts: int, rng: random.Random) -> tuple[list[str], bool]:
    """The words of a review, and whether it is a good one: whether more of its parts praise than blame."""
    words: list[str] = []
    praise = 0
    for part in range(parts):
        good, turned = rng.random() < 0.5, rng.random() < 0.3
        if part:
            words += [",", rng.choice(["but", "and"])]
        link = rng.choice(TURNED if turned else STRAIGHT)
        adjective = rng.choice(GOOD if good != turned else BAD)
        words += ["the", rng.choice(SUBJECTS), *link.split(), adjective]
        praise += good
    return words, 2 * praise > parts


def reviews(count: int, parts: list[int], rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (T, B) with zeros behind a review's end, lengths (B), and labels (B), 1 for good."""
    written = [write_review(rng.choice(parts), rng) for _ in range(count)]
    rows = [torch.tensor([IDS[word] for word in words]) for words, _ in written]
    lengths = torch.tensor([len(row) for row in rows])
    return pad_sequence(rows), lengths, torch.tensor([float(good) for _, good in written])


class Reader(nn.Module):
    """Reads from left to right; the last state of each review decides."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 16)
        self.recurrent = fastrnn.LSTM(16, hidden)
        self.classifier = nn.Linear(hidden, 1)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids (T, B), lengths (B); logits (B)."""
        _, (h, _) = self.recurrent(ids, lengths=lengths, embedding=self.embedding)
        return self.classifier(h[-1]).squeeze(-1)  # h[-1] is (B, H), after each review's own last word


class BagOfWords(nn.Module):
    """Counts words and weighs them: logistic regression."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(len(WORDS), 1)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids (T, B), lengths (B); logits (B)."""
        real = torch.arange(len(ids)).unsqueeze(-1) < lengths
        counts = (F.one_hot(ids, len(WORDS)) * real.unsqueeze(-1)).sum(0)
        return self.classifier(counts.float()).squeeze(-1)


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor, Tensor]) -> float:
    ids, lengths, labels = data
    with torch.no_grad():
        return ((model(ids, lengths) > 0) == labels.bool()).float().mean().item()


def train(model: nn.Module, args: argparse.Namespace) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    rng = random.Random(args.seed)
    for step in range(1, args.steps + 1):
        ids, lengths, labels = reviews(args.batch, [1, 3, 5], rng)
        loss = F.binary_cross_entropy_with_logits(model(ids, lengths), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % max(args.steps // 5, 1) == 0:
            print(f"  {type(model).__name__} step {step:,}: loss {loss.item():.3f}", flush=True)


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="Good or bad reviews.")
    parser.add_argument("--hidden", type=int, default=48, help="hidden units H (default: 48)")
    parser.add_argument("--batch", type=int, default=64, help="batch rows B (default: 64)")
    parser.add_argument("--steps", type=int, default=1500, help="training steps (default: 1500)")
    parser.add_argument("--lr", type=float, default=5e-3, help="learning rate (default: 5e-3)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--quick", action="store_true", help="fewer steps, within seconds")
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.hidden = 400, 32
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    test_rng = random.Random(args.seed + 1_000_000)  # other reviews than those trained on
    usual, long = reviews(2000, [1, 3, 5], test_rng), reviews(1000, [7, 9], test_rng)

    reader, bag = Reader(args.hidden), BagOfWords()
    train(bag, args)
    train(reader, args)
    found = {"bag": accuracy(bag, usual), "reader": accuracy(reader, usual)}
    found |= {"bag, long": accuracy(bag, long), "reader, long": accuracy(reader, long)}
    print("accuracy                1-5 parts   7-9 parts (longer than any in training)")
    print(f"bag of words            {found['bag']:8.1%}   {found['bag, long']:8.1%}")
    print(f"LSTM                    {found['reader']:8.1%}   {found['reader, long']:8.1%}")
    text = "the cast was fine , but the plot was not good , and the pace was never funny"
    ids = torch.tensor([[IDS[word]] for word in text.split()])
    print(f'"{text}": good with probability {torch.sigmoid(reader(ids, torch.tensor([len(ids)]))).item():.3f}')
    return found


if __name__ == "__main__":
    main()
