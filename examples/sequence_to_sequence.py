"""Sequence to sequence: numbers in words are translated to digits, by an encoder and a decoder.

"four hundred and two thousand and sixteen" becomes "402016". The encoder reads the words; its last state is all that
the decoder knows. The decoder begins with START and ends with END; its input is the digit before, the right one in
training (teacher forcing) and its own answer in use.

Sutskever, Vinyals & Le, Sequence to sequence learning with neural networks, 2014 (arXiv:1409.3215), found that a
source read backwards is learned better: the first of its words is then next to the first of the translation. In their
section 3.3 the test perplexity goes from 5.8 to 4.7 and BLEU from 25.9 to 30.6. Here both ways are trained alike.

    python examples/sequence_to_sequence.py
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import fastrnn

DIGITS = "zero one two three four five six seven eight nine"
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
DECADES = "zero ten twenty thirty forty fifty sixty seventy eighty ninety"
ONES, TENS = f"{DIGITS} {TEENS}".split(), DECADES.split()
SIZES = {1_000_000: "million", 1000: "thousand", 100: "hundred"}
IDS = {word: number for number, word in enumerate(dict.fromkeys([*ONES, *TENS, *SIZES.values(), "and"]))}
START, END = 10, 11  # after the digits


def in_words(n: int) -> list[str]:
    """The English words for 0 ≤ n < 1,000,000,000."""
    for size, name in SIZES.items():
        if n >= size:
            rest = in_words(n % size) if n % size else []
            return [*in_words(n // size), name, *(["and"] if 0 < n % size < 100 else []), *rest]
    if n < 20:
        return [ONES[n]]
    return [TENS[n // 10], *([ONES[n % 10]] if n % 10 else [])]


def batch_of(numbers: list[int], backwards: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Words (T, B) and their number (B); digits between START and END (T', B), END behind the end."""
    source = [torch.tensor([IDS[word] for word in in_words(n)]) for n in numbers]
    target = [torch.tensor([START, *map(int, str(n)), END]) for n in numbers]
    lengths = torch.tensor([len(words) for words in source])
    source = [words.flip(0) for words in source] if backwards else source
    return pad_sequence(source), lengths, pad_sequence(target, padding_value=END)


class Translator(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.words, self.digits = nn.Embedding(len(IDS), 16), nn.Embedding(12, 16)
        self.encoder, self.decoder = fastrnn.LSTM(16, hidden), fastrnn.LSTM(16, hidden)
        self.readout = nn.Linear(hidden, 12)

    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        """The state (h, c) after the last word of each row."""
        return self.encoder(source, lengths=lengths, embedding=self.words)[1]

    def forward(self, source: Tensor, lengths: Tensor, before: Tensor) -> Tensor:
        """Logits (T', B, 12) for what follows each of the digits ``before`` (T', B)."""
        y, _ = self.decoder(before, self.encode(source, lengths), embedding=self.digits)
        return self.readout(y)

    @torch.no_grad()
    def translate(self, source: Tensor, lengths: Tensor, longest: int = 10) -> list[str]:
        """The likeliest digit at each step is the next input, until END."""
        state = self.encode(source, lengths)
        token, found = torch.full((source.shape[1],), START), []
        for _ in range(longest):
            y, state = self.decoder.step(token, state, embedding=self.digits)
            token = self.readout(y).argmax(-1)
            found.append(token)
        rows = torch.stack(found, 1).tolist()
        return ["".join(str(t) if t < 10 else " " for t in row).split(" ")[0] for row in rows]


def train(backwards: bool, args: argparse.Namespace) -> tuple[Translator, list[int], float]:
    """A trained translator, the numbers it has not seen, and how many of them it gets right."""
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    unseen = [n for n in (draw(rng, args.digits) for _ in range(2000)) if n >= 100]
    held_out = set(unseen)
    model = Translator(args.hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for step in range(1, args.steps + 1):
        numbers = [n for n in (draw(rng, args.digits) for _ in range(args.batch)) if n not in held_out]
        source, lengths, target = batch_of(numbers, backwards)
        logits = model(source, lengths, target[:-1])
        loss = F.cross_entropy(logits.flatten(0, 1), target[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(args.steps // 5, 1) == 0:
            print(f"  step {step:,}: loss {loss.item():.3f}", flush=True)
    answers = model.translate(*batch_of(unseen, backwards)[:2])
    return model, unseen, sum(answer == str(n) for answer, n in zip(answers, unseen, strict=True)) / len(unseen)


def draw(rng: random.Random, digits: int) -> int:
    """A number of one to so many digits, each length as likely."""
    return rng.randrange(10 ** rng.randint(1, digits))


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="Numbers in words to digits.")
    parser.add_argument("--digits", type=int, default=9, help="maximum number of digits, 3 to 9 (default: 9)")
    parser.add_argument("--hidden", type=int, default=96, help="hidden units H (default: 96)")
    parser.add_argument("--batch", type=int, default=64, help="batch rows B (default: 64)")
    parser.add_argument("--steps", type=int, default=800, help="training steps (default: 800)")
    parser.add_argument("--lr", type=float, default=4e-3, help="learning rate (default: 4e-3)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--quick", action="store_true", help="numbers of three digits, within seconds")
    args = parser.parse_args(argv)
    if not 3 <= args.digits <= 9:
        parser.error(f"--digits: expected 3 to 9, got {args.digits}")
    if args.quick:
        args.digits, args.hidden, args.steps = 3, 64, 400
    torch.set_num_threads(args.threads)
    found = {}
    for name, backwards in (("forwards", False), ("backwards", True)):
        print(f"the words are read {name}")
        model, unseen, found[name] = train(backwards, args)
        shown = sorted(unseen, key=lambda n: -len(in_words(n)))[:: len(unseen) // 3]
        for n, answer in zip(shown, model.translate(*batch_of(shown, backwards)[:2]), strict=True):
            print(f"  {' '.join(in_words(n))} -> {answer} ({'right' if answer == str(n) else 'wrong'})")
    print(f"correct on held-out numbers: forwards {found['forwards']:.1%}, backwards {found['backwards']:.1%}")
    return found


if __name__ == "__main__":
    main()
