"""Runs of several seeds: means, spreads and differences paired by seed, against sums by hand."""

import json

import numpy as np
import pytest
from answered import answered, failed
from test_compare import POPE, ask, random_run
from tiny_evaluation import save_pictures, save_questions, save_yes_no_checkpoint

from causalmm import CausalMMConfig
from causalmm.errors import RequestError
from causalmm.evaluation import commands
from causalmm.evaluation.over_seeds import ALONE, groups, over_seeds, table
from causalmm.evaluation.statistics import resampling_weights
from causalmm.evaluation.tally import join
from causalmm.evaluation.variants import with_seeds


def counted(questions, runs, bases=()):
    pairs = {name: join(questions, answers) for name, answers in runs.items()}
    return over_seeds(POPE.tally, pairs, bases)


def accuracy(questions, run):
    right = [run[each.id].answer == each.label for each in questions]
    return 100 * np.mean(right)


def test_groups_are_told_by_the_names_of_folders():
    names = ["greedy", "sample,seed=3", "sample,seed=4", "seed=-1", "gamma=2,epsilon=0"]
    assert groups(names) == {
        "greedy": {None: "greedy"},
        "sample": {3: "sample,seed=3", 4: "sample,seed=4"},
        ALONE: {-1: "seed=-1"},
        "gamma=2,epsilon=0": {None: "gamma=2,epsilon=0"},
    }


def test_means_spreads_and_intervals_by_hand():
    questions = ask(12)
    runs = {f"seed={seed}": random_run(questions, 0.7, seed) for seed in (1, 2, 3)}
    [row] = counted(questions, runs)
    values = [accuracy(questions, run) for run in runs.values()]
    assert (row.name, row.group, row.base, row.seeds) == ("toy/odd", ALONE, None, (1, 2, 3))
    found = row.metrics["accuracy"]
    assert found.value == pytest.approx(np.mean(values))
    assert row.spread["accuracy"] == pytest.approx(np.std(values, ddof=1))
    # The same images are drawn for every seed.
    by_image = np.array(
        [
            [run[each.id].answer == each.label for each in questions]
            for run in runs.values()
        ]
    ).reshape(3, 12, 2)  # fmt: skip
    weights = resampling_weights([""] * 12, 1000, 0)
    again = 100 * np.einsum("ri,sij->r", weights, by_image) / (3 * 24)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(again, [2.5, 97.5])))


def test_differences_are_paired_by_seed_or_with_the_only_run():
    questions = ask(10)
    ours = {f"ours,seed={seed}": random_run(questions, 0.8, seed) for seed in (1, 2)}
    theirs = {f"theirs,seed={seed}": random_run(questions, 0.6, 10 + seed) for seed in (1, 2, 3)}
    alone = {"greedy": random_run(questions, 0.7, 5)}
    rows = counted(questions, ours | theirs | alone, ["greedy", "theirs"])
    found = {(row.group, row.base): row for row in rows}
    assert list(found) == [
        *(("ours", None), ("theirs", None), ("ours", "greedy"), ("theirs", "greedy")),
        ("ours", "theirs"),
    ]
    mine = [accuracy(questions, run) for run in ours.values()]
    other = [accuracy(questions, theirs[f"theirs,seed={seed}"]) for seed in (1, 2)]
    base = accuracy(questions, alone["greedy"])
    for key, differences in {
        ("ours", "theirs"): np.subtract(mine, other),
        ("ours", "greedy"): np.subtract(mine, base),
    }.items():
        row = found[key]
        assert row.metrics["accuracy"].value == pytest.approx(differences.mean())
        assert row.spread["accuracy"] == pytest.approx(differences.std(ddof=1))
    said = table(rows)
    assert "mean difference to theirs, paired by seed," in said
    assert said.count("| ours ") == 3


def test_a_run_of_one_seed_or_none_is_no_group():
    questions = ask(2)
    run = random_run(questions, 1, 0)
    assert counted(questions, {"greedy": run, "sample,seed=1": run}) == []


def test_equal_runs_have_no_spread():
    questions = ask(4)
    run = answered(questions, ["yes"] * 8)
    [row, less] = counted(
        questions, {"a,seed=0": run, "a,seed=1": run, "greedy": run}, bases=["greedy"]
    )
    assert set(row.spread.values()) == {0}
    assert {each.value for each in less.metrics.values()} == {0}


def test_a_failed_answer_counts_as_in_every_table():
    questions = ask(3)
    runs = {f"seed={seed}": random_run(questions, 1, seed) for seed in (0, 1)}
    runs["seed=1"] = failed(runs["seed=1"], questions[0].id)
    [row] = counted(questions, runs)
    assert row.metrics["accuracy"].value == pytest.approx(100 * (6 + 5) / 12)


def test_seeds_are_given_where_something_is_drawn(make_request):
    random, uniform = CausalMMConfig(seed=4), {"vision_method": "uniform", "mode": "vision"}
    requests = {
        "random": make_request(random),
        "uniform": make_request(CausalMMConfig(**uniform)),
        "uniform sampled": make_request(CausalMMConfig(**uniform), sampled=True),
        "plain": make_request(None),
        "plain sampled": make_request(None, sampled=True),
    }
    found = with_seeds(requests, 2)
    assert list(found) == [
        *("random,seed=4", "random,seed=5", "uniform"),
        *("uniform sampled,seed=0", "uniform sampled,seed=1"),
        *("plain", "plain sampled,seed=0", "plain sampled,seed=1"),
    ]
    assert found["random,seed=5"].config.seed == found["random,seed=5"].seed == 5
    with pytest.raises(RequestError, match="--seeds: the grid has a seed of its own"):
        with_seeds({"gamma=1,seed=3": make_request(random)}, 2)


@pytest.fixture
def make_request():
    from causalmm.cli.request import SAMPLING_OFF, Request

    def make(config, sampled=False):
        return Request(
            model="m",
            source="m",
            family="llava",
            config=config,
            sampling={"do_sample": True, **SAMPLING_OFF} if sampled else {"do_sample": False},
            seed=0 if config is None else config.seed,
            max_new_tokens=1,
        )

    return make


def test_the_command_runs_scores_and_compares_them(tmp_path, capfd):
    save_yes_no_checkpoint("llava", tmp_path / "model")
    save_pictures(tmp_path)
    save_questions(tmp_path)
    given = ["--questions", tmp_path / "tiny_pope_random.json", "--images", tmp_path]
    given = [*given, "--suffix", "", "--model", tmp_path / "model", "--max-new-tokens", "2"]
    asks = ["pope", "run", *given, "--controls", "--seeds", "2", "--out", tmp_path / "runs"]
    assert commands.main(list(map(str, asks))) == 0
    names = sorted(each.name for each in (tmp_path / "runs").iterdir())
    sampled = ("causalmm", "causalmm+sample", "sample", "sample+mask")
    assert names == sorted(["greedy", *(f"{name},seed={k}" for name in sampled for k in (0, 1))])
    capfd.readouterr()
    reads = ["pope", "compare", tmp_path / "runs", "--base", "greedy", "--out", tmp_path / "c.json"]
    assert commands.main(list(map(str, reads))) == 0
    assert "over seeds: mean difference to greedy, paired by seed" in capfd.readouterr().out
    rows = json.loads((tmp_path / "c.json").read_text())["seeds"]
    assert {row["group"] for row in rows if row["base"] == "greedy"} == set(sampled)
    assert all(row["seeds"] == [0, 1] for row in rows)
    reads = ["pope", "score", tmp_path / "runs", "--out", tmp_path / "s.json"]
    assert commands.main(list(map(str, reads))) == 0
    assert {row["base"] for row in json.loads((tmp_path / "s.json").read_text())["seeds"]} == {None}
