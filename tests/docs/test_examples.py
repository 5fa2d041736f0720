"""The examples run, quickly, and reach something; each is short, and a run can be repeated."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(FOLDER.glob("*.py"))

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="not in a checkout")


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: str) -> dict[str, float]:
    return load(name).main(["--quick", "--threads", "1", *arguments])


def test_networks_that_keep_solve_the_adding_problem_and_small_random_weights_do_not(capsys):
    errors = run("adding_problem", "--cells", "lstm", "irnn", "tanh")
    assert errors["lstm"] < 0.01
    assert errors["irnn"] < 0.01
    assert errors["tanh"] > 0.12  # who always answers 1 has 0.167
    assert capsys.readouterr().out.count(" solved") == 3  # one of them "not solved"


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize("cell", ["gru", "indrnn", "min_gru"])
def test_other_cells_of_the_adding_problem(cell):
    assert run("adding_problem", "--cells", cell)[cell] < 0.05


def test_adding_problem_is_what_it_says():
    adding = load("adding_problem")
    x, total = adding.draw(31, 500)
    assert x.shape == (31, 500, 2)
    marks = x[..., 1]
    assert (marks[:15].sum(0) == 1).all()
    assert (marks[15:].sum(0) == 1).all()
    assert ((total - 1) ** 2).mean().item() == pytest.approx(adding.BASELINE, abs=0.03)


def test_reader_of_reviews_beats_the_bag_of_words():
    right = run("text_classification")
    assert 0.55 < right["bag"] < 0.85
    assert right["reader"] > 0.95
    assert right["reader, long"] > right["bag, long"] + 0.1


def test_translator_reads_numbers_that_it_has_not_seen():
    right = run("sequence_to_sequence")
    assert min(right.values()) > 0.4


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (0, "zero"),
        (15, "fifteen"),
        (90, "ninety"),
        (402_016, "four hundred and two thousand and sixteen"),
        (1_000_001, "one million and one"),
        (999_000_120, "nine hundred and ninety nine million one hundred and twenty"),
    ],
)
def test_numbers_in_words(n, words):
    assert " ".join(load("sequence_to_sequence").in_words(n)) == words


def test_captions_are_right_of_pictures_never_seen():
    right = run("captioning")
    assert right["every step, trained on"] > 0.2  # by chance: 1 of 528
    assert right["every step, never trained on"] > 0.05
    assert right["every step, trained on"] > right["the first step, trained on"]


def test_policy_with_memory_keeps_the_pole_up_and_without_does_not():
    steps = run("recurrent_policy")
    assert steps["with"] > 120
    assert steps["without"] < 70


def test_step_and_whole_rollout_of_the_policy_agree():
    """The logits met in the world, step by step, are those of one call with all resets."""
    policies = load("recurrent_policy")
    policy = policies.Policy(8, memory=True)
    rollout = policies.collect(policy, 60, 5)
    assert rollout.fallen[:-1].any()  # or there would be no reset inside
    log_prob = policy(rollout.x, rollout.reset)[..., :2].log_softmax(-1).gather(-1, rollout.action)
    assert (log_prob - rollout.log_prob).abs().max() < 1e-5


def test_denoiser_streams_what_it_computes_for_whole_sequences():
    found = run("streaming_denoiser")
    assert found["difference"] < 1e-5
    assert found["after"] > found["before"] + 4
    assert found["after"] > found["filter"] - 1


def test_a_run_can_be_repeated():
    arguments = ("--cells", "irnn", "--steps", "50", "--seed")
    adding = load("adding_problem")
    runs = [adding.main(["--threads", "1", "--length", "20", *arguments, seed]) for seed in ("3", "3", "4")]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_examples_are_short_and_in_the_table(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 150
    assert path.name in (FOLDER / "README.md").read_text(encoding="utf-8")
