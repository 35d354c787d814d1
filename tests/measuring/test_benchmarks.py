"""Benchmarks run, count work as torch counts it, read known memory, and compare the same tokens.

No test looks at how long anything took.
"""

import argparse
import json
import subprocess
import sys
import types
from pathlib import Path

import attention
import decode
import loading
import measure
import memory
import mitigv_vcd
import models
import pytest
import questions
import table
import torch
import work
from contenders import Case, Inputs, call, cases, image_of, map_bytes
from family_rows import families_with, fast_first
from hypothesis import given
from hypothesis import strategies as st
from known_allocations import read_known_allocations
from sequential import SequentialBranches
from tiny_models import model_pair, pad_together, sample
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from causalmm import CausalMMConfig
from causalmm.config import MODES
from causalmm.presets.registry import PRESETS

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "examples" / "llava_300041_helped.png"
CPU = torch.device("cpu")
SMALL = {"image_tokens": 16, "text_tokens": 24}
PUBLISHED = {
    "llava-1.5-7b": 7_063_427_072,
    "llava-1.6-mistral-7b": 7_566_747_648,
    "qwen2-vl-2b": 2_208_985_600,
    "qwen2-vl-7b": 8_291_375_616,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen3-vl-8b": 8_767_123_696,
}


@pytest.fixture(scope="module", params=models.TINY)
def preset(request):
    return request.param


@pytest.fixture(scope="module")
def pair(preset):
    return models.build_pair(preset, dtype=torch.float32, device=CPU, image_tokens=16)


@pytest.fixture(scope="module")
def eager(preset):
    pair = models.build_pair(preset, dtype=torch.float32, device=CPU, image_tokens=16)
    for model in pair:
        model.set_attn_implementation("eager")
    return pair


# -- measuring ---------------------------------------------------------------------------------


def test_everybody_has_a_turn_in_every_round_and_each_begins_one():
    said = []
    contenders = {name: lambda name=name: said.append(name) or name for name in "abc"}
    results = measure.take_turns(contenders, 4, warm_up=1)
    assert results == {name: [name] * 4 for name in "abc"}
    assert "".join(said) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_no_round_is_begun_after_the_time_but_for_the_least():
    results = measure.take_turns({"a": lambda: 1}, 9, seconds=-1.0)
    assert results == {"a": [1] * measure.LEAST_ROUNDS}


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=20))
def test_spread_is_median_and_quartiles(samples):
    found = measure.spread(samples)
    expected = torch.tensor(samples, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    assert [found["low"], found["median"], found["high"]] == pytest.approx(expected.tolist())
    assert found["rounds"] == len(samples)


def test_ratios_are_taken_within_a_round():
    assert measure.ratios([2.0, 30.0, 400.0], [1.0, 10.0, 100.0])["median"] == 3.0


def test_bars():
    assert measure.Bar("", 1.0, 1.0).met
    assert not measure.Bar("", 1.1, 1.0).met
    assert measure.Bar("", 1.1, 1.0, at_least=True).met
    assert not measure.Bar("", 0.9, 1.0, at_least=True).met


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("size", fast_first(1, [64, 4, 200]))
def test_peak_memory_of_known_allocations(size):
    # In a fresh process: from the large free blocks of a used heap, memory is taken in turns, and
    # what was freed stays.
    with memory.fresh_processes() as processes:
        processes.submit(read_known_allocations, size).result()


@given(st.floats(0.5, 2.5), st.floats(1, 1e6))
def test_exponent_of_growth(power, factor):
    lengths = [1024, 2048, 8192, 32768]
    found = attention.exponent(lengths, [factor * length**power for length in lengths])
    assert found == pytest.approx(power)


# -- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    config = models.configuration(name)
    with torch.device("meta"):
        model = models.class_of(config.model_type, ours=False)._from_config(config)
    model.tie_weights()
    assert sum(part.numel() for part in model.parameters()) == PUBLISHED[name]


def test_both_models_hold_the_same_tensors_and_say_the_same(preset, pair):
    theirs = dict(pair.upstream.named_parameters())
    for name, part in pair.ours.named_parameters():
        assert part.data_ptr() == theirs[name].data_ptr()
    inputs = models.prompt(pair.ours, batch=2, **SMALL)
    # A line of tiles ends in a token: 4 x 4 patches of the whole picture, 8 lines of the tiles.
    image = 4 * 4 + 8 * (8 + 1) if "image_sizes" in inputs else 16
    assert inputs["input_ids"].shape == (2, 24 + image)
    with torch.no_grad():
        mine, other = (model(**inputs).logits for model in pair)
    assert torch.equal(mine, other)
    assert mine.isfinite().all()
    assert mine.std() > 0.1


def test_questions_about_one_image(preset, pair):
    one, other = (models.prompt(pair.ours, question=n, **SMALL) for n in (0, 1))
    assert torch.equal(one["pixel_values"], other["pixel_values"])
    differ = one["input_ids"] != other["input_ids"]
    last = int((one["input_ids"][0] == pair.ours.config.image_token_id).nonzero().max())
    assert differ.any()
    assert not differ[:, : last + 1].any()


# -- the same in sequence ----------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["all", "image"])
@pytest.mark.parametrize("draws", [1, 2])
@families_with("mode", MODES, fast="joint")
def test_branches_in_sequence_say_our_tokens(family, mode, draws, scope):
    ours, upstream = model_pair(family, "sdpa")
    config = CausalMMConfig(mode=mode, draws=draws, epsilon=0, seed=3, language_scope=scope)
    plan = ours.causalmm_plan(config)
    inputs = pad_together([sample(family, seed=seed) for seed in (1, 2)])
    length = inputs["input_ids"].shape[1]
    said = [
        ours.generate(**inputs, causalmm=each, do_sample=False, max_new_tokens=8)[:, length:]
        for each in (plan, None)
    ]
    assert torch.equal(SequentialBranches(upstream).generate(inputs, plan, 8), said[0])
    assert not torch.equal(*said)


def test_branches_in_sequence_refuse_what_they_do_not_know(preset, pair):
    sequential = SequentialBranches(models.twin(pair.ours))
    inputs = models.prompt(pair.ours, **SMALL)
    padded = inputs | {"attention_mask": inputs["attention_mask"].clone()}
    padded["attention_mask"][0, 0] = 0
    unknown = (
        {"vision_method": "noise"},
        {"schedule": "growing"},
        {"language_heads": "image:1"},
    )
    for asked, settings in ((padded, {}), *((inputs, each) for each in unknown)):
        with pytest.raises(ValueError, match="know neither padding nor site='features', noised"):
            sequential.generate(asked, pair.ours.causalmm_plan(CausalMMConfig(**settings)), 2)


def test_contrast_of_another_package(preset, pair):
    if not mitigv_vcd.available(pair.upstream.config.model_type):
        pytest.skip("needs mitigv, and LLaVA")
    inputs = models.prompt(pair.ours, batch=2, **SMALL)
    assert mitigv_vcd.generate(pair.upstream, inputs, 5).shape == (2, 5)


# -- work --------------------------------------------------------------------------------------


def counted_flops(model, inputs, **extra):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs, **extra, logits_to_keep=1)
    return counter.get_total_flops()


def hidden_pairs(model, prompt, rows):
    """FLOPs that eager attention spends on pairs the causal mask hides."""
    hidden = prompt.length * (prompt.length - 1) / 2
    return rows * model.config.text_config.num_hidden_layers * 4 * query_width(model) * hidden


def query_width(model):
    """Of a query of all heads."""
    return model.get_decoder().layers[0].self_attn.q_proj.out_features


def test_flops_of_a_plain_prefill(preset, eager):
    inputs = models.prompt(eager.ours, batch=3, **SMALL)
    prompt = work.Prompt.of(eager.ours, inputs)
    expected = counted_flops(eager.upstream, inputs)
    found = work.prefill(eager.ours, None, prompt).flops
    assert found + hidden_pairs(eager.ours, prompt, rows=3) == expected


@pytest.mark.parametrize("layers", ["all", "-third:"])
@pytest.mark.parametrize("mode", MODES)
def test_flops_of_branches(preset, eager, mode, layers):
    """With `uniform` the edited layers have sums in the place of products."""
    plan = eager.ours.causalmm_plan(
        CausalMMConfig(
            mode=mode,
            language_method="uniform",
            vision_method="uniform",
            language_layers=layers,
            vision_layers="1:",
        )
    )
    inputs = models.prompt(eager.ours, batch=2, **SMALL)
    prompt = work.Prompt.of(eager.ours, inputs)
    text = eager.ours.config.text_config
    hidden = hidden_pairs(eager.ours, prompt, rows=2 * (1 + plan.image_branches))
    unedited = text.num_hidden_layers - len(plan.language.layers) if plan.language else 0
    if mode == "joint":  # its rows see pairs, and hide them, in unedited layers only
        per_layer = hidden_pairs(eager.ours, prompt, rows=2) / text.num_hidden_layers
        hidden = hidden_pairs(eager.ours, prompt, rows=2) + unedited * per_layer
    expected = counted_flops(eager.ours, inputs, causalmm=plan)
    assert work.prefill(eager.ours, plan, prompt).flops + hidden == expected


@pytest.mark.parametrize("method", ["reverse", "blind"])
def test_flops_of_scope_image(preset, eager, method):
    """Pairs of text and image are left out, or counted once: no block of ours has both."""
    plan = eager.ours.causalmm_plan(
        CausalMMConfig(
            mode="language",
            language_method=method,
            language_scope="image",
            language_layers="all",
        )
    )
    inputs = models.prompt(eager.ours, batch=2, **SMALL)
    prompt = work.Prompt.of(eager.ours, inputs)
    image = inputs["input_ids"][0] == eager.ours.config.image_token_id
    runs = image.unique_consecutive(return_counts=True)[1].tolist()
    text = eager.ours.config.text_config
    hidden = sum(length * (length - 1) / 2 for length in runs)  # in the blocks on the diagonal
    hidden = 2 * text.num_hidden_layers * 4 * query_width(eager.ours) * hidden
    hidden += hidden_pairs(eager.ours, prompt, rows=2)
    expected = counted_flops(eager.ours, inputs, causalmm=plan)
    assert work.prefill(eager.ours, plan, prompt).flops + hidden == expected


def test_flops_of_noised_pictures(preset, eager):
    plan = eager.ours.causalmm_plan(CausalMMConfig.preset("vcd"))
    inputs = models.prompt(eager.ours, batch=2, **SMALL)
    prompt = work.Prompt.of(eager.ours, inputs)
    expected = counted_flops(eager.ours, inputs, causalmm=plan)
    found = work.prefill(eager.ours, plan, prompt).flops
    assert found + hidden_pairs(eager.ours, prompt, rows=4) == expected


@pytest.mark.parametrize("mode", [None, *MODES])
def test_bytes_of_a_step_are_weights_and_cache(preset, pair, mode):
    """`reverse` looks at keys and values, so a step reads all of a cache."""
    plan = None
    if mode is not None:
        plan = pair.ours.causalmm_plan(
            CausalMMConfig(mode=mode, language_method="reverse", language_layers="-third:")
        )
    inputs = models.prompt(pair.ours, batch=2, **SMALL)
    cache = DynamicCache(config=pair.ours.config.get_text_config())
    with torch.no_grad():
        pair.ours(**inputs, causalmm=plan, past_key_values=cache, use_cache=True)
    cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    weights = sum(
        part.nbytes
        for module in (pair.ours.model.language_model.layers, pair.ours.lm_head)
        for part in module.parameters()
    )
    keys = inputs["input_ids"].shape[1]
    found = work.decode(pair.ours, plan, work.Prompt.of(pair.ours, inputs), keys=keys)
    assert found.read == weights + cached


def test_methods_that_look_at_no_scores_read_values_only(pair):
    prompt = work.Prompt.of(pair.ours, models.prompt(pair.ours, **SMALL))
    read = {}
    for method in ("reverse", "random"):
        config = CausalMMConfig(mode="language", language_method=method, language_layers="all")
        read[method] = work.decode(pair.ours, pair.ours.causalmm_plan(config), prompt, 40).read
    plain = work.decode(pair.ours, None, prompt, 40).read
    assert read["reverse"] - plain == 2 * (read["random"] - plain) > 0


def test_a_blind_step_reads_no_image(pair):
    prompt = work.Prompt.of(pair.ours, models.prompt(pair.ours, **SMALL))
    read = {}
    for method in ("reverse", "uniform", "blind"):
        config = CausalMMConfig(
            mode="language",
            language_method=method,
            language_scope="image",
            language_layers="all",
        )
        plan = pair.ours.causalmm_plan(config)
        read[method] = work.decode(pair.ours, plan, prompt, prompt.length)
    plain = work.decode(pair.ours, None, prompt, prompt.length)
    assert read["reverse"].read == read["uniform"].read
    text = prompt.length - prompt.image
    added = {method: each.read - plain.read for method, each in read.items()}
    assert added["blind"] * prompt.length == added["reverse"] * text
    assert read["blind"].flops < read["uniform"].flops < read["reverse"].flops


def test_flops_of_a_step(preset, eager):
    inputs = models.prompt(eager.ours, batch=2, **SMALL)
    cache = DynamicCache(config=eager.ours.config.get_text_config())
    with torch.no_grad():
        eager.upstream(**inputs, past_key_values=cache, use_cache=True)
    step = {"input_ids": inputs["input_ids"][:, -1:]}
    expected = counted_flops(eager.upstream, step, past_key_values=cache, use_cache=True)
    prompt = work.Prompt.of(eager.ours, inputs)
    assert work.decode(eager.ours, None, prompt, keys=prompt.length + 1).flops == expected


# -- attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [1, 12])
def test_dense_ways_and_ours_are_about_the_same_call(queries):
    inputs = Inputs(batch=2, heads=4, kv_heads=2, head_size=8, dtype=torch.float32)
    ways = cases("language", 12, queries)
    found = {case.way: call(case, inputs)() for case in ways}
    assert {part.shape for part in found.values()} == {(2, 4, queries, 8)}
    assert_close(found["dense reverse"], found["reverse"], atol=1e-5, rtol=1e-5)
    # Released `uniform` divides by all keys, and so by too many for every query but the last.
    assert_close(found["dense uniform"][:, :, -1], found["uniform"][:, :, -1])
    assert not torch.allclose(found["sdpa"], found["uniform"])
    assert torch.equal(found["sdpa, image"], found["sdpa"])
    if queries > 1:  # the image and what comes before it sees no image
        assert_close(found["blind, image"][:, :, :-1], found["sdpa"][:, :, :-1])
    assert not torch.allclose(found["blind, image"][:, :, -1], found["sdpa"][:, :, -1])


@pytest.mark.parametrize("keys", [1, 2, 7, 700, 4096])
def test_the_image_of_a_call(keys):
    image = image_of(keys)
    assert 1 <= len(image) <= 576
    assert image.start <= 5
    assert image.stop <= max(1, keys - 1)
    assert len(image) == 576 or image.stop == max(1, keys - 1)


def test_dense_vision_ways_and_ours_are_about_the_same_call():
    inputs = Inputs(batch=1, heads=2, kv_heads=2, head_size=8, dtype=torch.float32)
    found = {way.way: call(way, inputs)() for way in cases("vision", 9, 9)}
    assert_close(found["dense uniform"], found["uniform"], atol=1e-5, rtol=1e-5)
    assert len(found) == 9


def test_maps_are_told_before_they_are_built():
    inputs, case = Inputs(1, 8, 8, 64), Case("vision", 4096, 4096, "dense reversed")
    assert map_bytes(case, inputs) >= 8 * 4096**2 * 4
    assert map_bytes(case._replace(way="reversed"), inputs) == 0
    assert map_bytes(case._replace(way="sdpa"), inputs) == 0


# -- from end to end ---------------------------------------------------------------------------


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results.json"


def finish(out, capsys):
    """The record that was written, which is what was printed."""
    record = json.loads(out.read_text())
    assert table.show(record) in capsys.readouterr().out
    assert record["command"][1] == f"benchmarks/{record['benchmark']}.py"
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["versions"]["torch"] == torch.__version__
    return record


@pytest.mark.slow  # memory is read in a new process for each case
def test_attention(out, capsys):
    pytest.importorskip("matplotlib")
    lengths = ["16", "32", "64"]
    small = ["--heads", "2", "--kv-heads", "2", "--head-size", "8", "--rounds", "1"]
    limit = str(95_000 / 2**30)  # GB: maps of 64 x 64 are larger, those of 32 x 32 smaller
    argv = ["--lengths", *lengths, *small, "--map-memory", limit, "--out", str(out)]
    assert attention.main(argv) == 0
    rows = finish(out, capsys)["results"]
    ways = [len(cases(tower, 64, 64)) for tower in ("language", "language", "vision")]
    assert len(rows) == sum(ways) * len(lengths)  # a prefill and a step of the decoder
    for row in rows:
        maps = row["way"].startswith("dense ") or row["way"] == "shuffle"
        assert ("left_out" in row) == (maps and row["queries"] == 64)
        if "left_out" not in row:
            assert row["time_s"]["median"] > 0
            assert row["extra_bytes"] >= 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_of_memory_too_little_to_be_seen(tmp_path):
    pytest.importorskip("matplotlib")
    import figure

    times = dict.fromkeys(("median", "low", "high"), 0.1)
    rows = [
        {"tower": tower, "step": step, "way": "uniform", "keys": keys, "time_s": times}
        | {"extra_bytes": 0}
        for tower, step in attention.KINDS
        for keys in (16, 32)
    ]
    machine = {"gpu": None, "cpu": "a CPU"}
    settings = {"dtype": "float32", "heads": 1, "head_size": 2, "batch": 1}
    figure.draw({"machine": machine, "settings": settings, "results": rows}, tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_the_bars_of_attention():
    def row(tower, way, keys):
        extra = 2**20 * (keys // 1024) ** (2 if way == "reverse" else 1)
        known = {"extra_bytes": extra, "extra_ratio": 1.2, "time_ratio": {"median": 1.4}}
        known["image_ratio"] = {"median": 1.4 if keys > 1000 else 1.6}
        case = Case(tower, keys, keys, way)
        return case._asdict() | known | {"step": case.step}

    ways = {
        "language": ("sdpa", "uniform", "reverse", "random", "sdpa, image", "random, image"),
        "vision": ("reversed", "dense uniform"),
    }
    rows = [
        row(tower, way, keys)
        for tower, names in ways.items()
        for way in names
        for keys in (512, 700, 1024, 4096, 8192)
    ]
    met = {bar.what: bar.met for bar in attention.bars_of(rows)}
    assert len(met) == 11
    assert {what for what, good in met.items() if not good} == {
        "language uniform: time at 4096, to SDPA",
        "language reverse: exponent of memory's growth",
        "language random, image: time at 700, to SDPA and one over the image keys",
    }


@pytest.mark.parametrize("preset", fast_first(1, models.TINY), scope="module")
def test_decode(preset, out, capsys):
    argv = ["--preset", preset, "--image-tokens", "16", "--text-tokens", "24", "--batch", "1", "2"]
    argv += ["--new-tokens", "3", "--rounds", "1", "--prefills", "2", "--dtype", "float32"]
    argv += ["--out", str(out)]
    assert decode.main([*argv, "--modes", "language-third", "multimodal"]) == 0
    rows = finish(out, capsys)["results"]["rows"]
    ways = ["plain", "language-third", "multimodal"]
    ours = [row for row in rows if row["way"] in ways]
    assert [(row["batch"], row["way"]) for row in ours] == [(b, w) for b in (1, 2) for w in ways]
    for row in ours:
        assert row["prefill_s"]["rounds"] == (len(rows) - 2 if row["way"] == "plain" else 2)
        assert row["prefill_s"]["median"] > 0
        assert row["step_s"]["median"] > 0
        assert row["step_bytes_ratio"] >= 1
        assert row["prefill_flops_ratio"] >= 1
        if row["way"] != "plain":
            assert row["first_tokens_as_sequential"] == 3
    assert {row["way"] for row in rows} >= {"sequential language-third", "sequential multimodal"}


@pytest.mark.parametrize("preset", fast_first(1, models.TINY), scope="module")
def test_decode_of_presets(preset, out, capsys):
    """All that the model has what they need for, beside plain and mitigv's loop."""
    argv = ["--preset", preset, "--image-tokens", "16", "--text-tokens", "24"]
    argv += ["--new-tokens", "2", "--rounds", "1", "--prefills", "1", "--dtype", "float32"]
    family = models.configuration(preset).model_type
    clip = family in ("llava", "llava_next")
    names = [name for name, each in PRESETS.items() if clip or not each.features_site]
    asked = [] if clip else names
    if not clip:
        assert decode.main([*argv, "--presets"]) == 2
        assert "needs a model with one vision feature layer" in capsys.readouterr().err
    assert decode.main([*argv, "--out", str(out), "--presets", *asked]) == 0
    rows = finish(out, capsys)["results"]["rows"]
    with_vcd = mitigv_vcd.available(family)
    assert [row["way"] for row in rows] == ["plain", *names] + ["mitigv vcd"] * with_vcd
    for row in rows:
        assert row["step_ratio"]["rounds"] == 1
        assert ("step_to_vcd" in row) == (with_vcd and row["way"] != "mitigv vcd")
        assert row["way"] == "mitigv vcd" or row["step_bytes_ratio"] >= 1


def test_presets_stand_in_the_place_of_modes(capsys):
    assert decode.main(["--presets", "vcd", "--modes", "vision"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_prefill_is_compared_with_plains_beside_it():
    """Of plain, all its rounds count."""
    seconds = {"plain": 1.0, "vision": 2.0, "joint": 3.0}
    calls = {
        name: lambda each=each: decode.Timing(each, [each], torch.empty(1, 0))
        for name, each in seconds.items()
    }
    contenders = types.SimpleNamespace(calls=lambda inputs, new: calls)
    args = argparse.Namespace(rounds=1, prefills=2, compile=False, new_tokens=2)
    found = decode.take_timings(contenders, {}, args)
    assert found["plain"].prefills == [1.0] * 4
    assert found["joint"].prefills == [3.0] * 2
    peaks = dict.fromkeys(seconds, memory.Peak(1, 2))
    rows = {name: decode.row_of(name, 1, found, peaks) for name in seconds}
    ratios = {name: row["prefill_ratio"]["median"] for name, row in rows.items()}
    assert ratios == {"plain": 1.0, "vision": 2.0, "joint": 3.0}


def test_questions(out, capsys):
    argv = ["--preset", "tiny", "--image-tokens", "16", "--questions", "3", "--new-tokens", "3"]
    argv += ["--rounds", "1", "--dtype", "float32", "--out", str(out)]
    assert questions.main(argv) == 0
    rows = finish(out, capsys)["results"]
    assert [row["same_tokens"] for row in rows] == [1.0] * 4
    assert len({row["way"] for row in rows}) == 4


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_loading_a_checkpoint_and_its_branches(tmp_path):
    size = loading.save(tmp_path, "tiny", "float32")
    assert (tmp_path / "config.json").is_file()
    loaded = loading.load(tmp_path, "float32")
    assert 0.9 * size < loaded["weights_bytes"] <= size
    found = loading.branches(tmp_path, "float32")
    assert found["weights_bytes"] == loaded["weights_bytes"]
    assert [each["rows"] for each in found["peaks"]] == [3, 5, 9]


def test_an_answer_imports_nothing_heavy():
    """In a process of its own, by the module that the command runs."""
    heavy = ("matplotlib", "gradio", "datasets", "pandas", "scipy", "sklearn")
    text = (
        "import sys\nfrom causalmm.cli.generate import main\n"
        f"assert main(['--image', {str(PICTURE)!r}, '--prompt', 'What is this?',\n"
        "    '--max-new-tokens', '2', '--device', 'cpu']) == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_loading(out, capsys):
    assert loading.main(["--preset", "tiny", "--out", str(out)]) == 0
    assert len(finish(out, capsys)["bars"]) == 3


@pytest.mark.slow
def test_scripts_run_as_files(out):
    """Python puts a script's folder first, so they find one another without an installation."""
    command = [sys.executable, ROOT / "benchmarks" / "decode.py", "--preset", "tiny"]
    command += [
        "--modes",
        "language",
        "--no-sequential",
        "--new-tokens",
        "2",
        "--image-tokens",
        "4",
    ]
    command += ["--text-tokens", "8", "--rounds", "1", "--prefills", "1"]
    subprocess.run([*command, "--out", out], check=True, capture_output=True)
    command = [sys.executable, ROOT / "benchmarks" / "table.py", out]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert table.show(json.loads(out.read_text())) in done.stdout


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--device", "meta"], "device 'meta'"),
        (["--compile"], "--compile needs --device cuda"),
        (["--preset", "tiny", "--image-tokens", "17"], "17 image tokens"),
        (["--preset", "tiny", "--image-tokens", "16", "--text-tokens", "5"], "5 tokens of text"),
    ],
)
def test_wrong_requests_are_refused_in_a_sentence(argv, words, capsys):
    assert decode.main(argv) == 2
    assert words in capsys.readouterr().err


def test_the_bars_of_presets():
    def row(way, **values):
        spreads = {name: {"median": value} for name, value in values.items()}
        return {"batch": 1, "way": way, "prefill_flops_ratio": 2.5} | spreads

    rows = [
        row("language-third", step_ratio=1.2),
        row("multimodal", step_ratio=1.3, prefill_ratio=2.6, step_to_sequential=0.45),
    ]
    args = argparse.Namespace(dtype="bfloat16", compile=False, preset="cpu-small")
    assert [bar.met for bar in decode.bars_of(args, CPU, rows)] == [False, True, True, True]
    args.preset = "llava-1.5-7b"
    assert decode.bars_of(args, CPU, rows) == []
    cuda = torch.device("cuda")
    assert [(bar.limit, bar.met) for bar in decode.bars_of(args, cuda, rows)] == [(2.7, True)]
    args.compile = True
    bars = decode.bars_of(args, cuda, rows)
    assert [(bar.limit, bar.met) for bar in bars] == [(1.15, False), (2.7, True)]


def test_the_readme_names_every_script():
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for script in ("attention", "decode", "questions", "loading", "serve", "table"):
        assert f"benchmarks/{script}.py" in text


def test_the_readme_holds_the_tables_of_all_results():
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    files = sorted(table.RESULTS.glob("*.json"))
    assert files
    for file in files:
        record = json.loads(file.read_text(encoding="utf-8"))
        assert f"### {file.stem}\n\n{table.show(record)}\n" in text
