"""The bench measures what its names say; how fast this machine is decides no test."""

import copy
import csv
import math
import platform
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from onebit import bench, bench_distill, bench_kernels, bench_packing, bench_quantized, bench_side, nets, paths, train
from onebit.bench import Bench, Row, Size
from onebit.diffusion import add_noise
from onebit.distill import SPD
from onebit.precision import resolve_precision

TINY = Size(width=4, batch=4, images=16, matrix=8)
PAIRS = [  # without those that start processes
    *bench.benches(TINY)[:4],
    *(Bench(*row) for row in bench_quantized.rows(bench.interleaved, bench_quantized.Size(4, 4, 16))),
    *(Bench(*row) for row in bench_distill.rows(bench.interleaved, bench_distill.Size(4, 4))),
    *(Bench(*row) for row in bench_kernels.rows(bench.interleaved, bench_kernels.Size(((8, 4),), (2, 1), 4))[:-2]),
    *(Bench(*row) for row in bench_packing.rows(bench.interleaved, bench_packing.Size(4, 1024, 2))),
]
HEADER = "name,ours,baseline,ratio,unit,machine"


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other are slow on a busy machine, and nothing here is about speed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """figures/ in a folder of the test's own."""
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    return tmp_path / "figures"


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told: clock.now += seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock.now)
    return clock


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_macs_equal_the_hand_count_of_the_published_network():
    """Per convolution: kernel area x channels in x channels out x positions (transposed: of the input)."""
    linear = 32 * 32 + 32 * 128 + 32 * 256 + 32 * 128 + 32 * 64  # the time MLP, then the four blocks' projections
    ends = 9 * 1 * 64 * 28**2 + 1 * 64 * 1 * 28**2
    down = (
        9 * 64 * 128 * 28**2 + 9 * 128 * 128 * 28**2 + 16 * 128 * 128 * 14**2
        + 9 * 128 * 256 * 14**2 + 9 * 256 * 256 * 14**2 + 16 * 256 * 256 * 7**2
    )
    up = (  # inputs doubled by the skips: 256 + 256 and 128 + 128
        9 * 512 * 128 * 7**2 + 9 * 128 * 128 * 7**2 + 16 * 128 * 128 * 7**2
        + 9 * 256 * 64 * 14**2 + 9 * 64 * 64 * 14**2 + 16 * 64 * 64 * 14**2
    )
    assert bench.macs(64) == linear + ends + down + up == 548_041_728


def test_names_are_those_that_other_files_look_for():
    precision = resolve_precision("auto")
    assert [b.name for b in bench.benches()] == [
        "train-step resunet64 fp16", "train-step resunet64 strict-1bit",
        f"train-step resunet64 share of {precision} matrix rate", "data-path batches",
        "nn 10000 x 60000 against scikit-learn", "nn 10000 x 60000 against faiss", "frechet 128",
        "sampling unet16 ddim 50", "sampling unet16 ddim 50 in bfloat16",
        "quantized-step unet16 weights only", "quantized-step unet16 weights only, two bases",
        "quantized-step unet16 W1A4 LSQ", "quantized-step unet16 W1A1 XNOR",
        "quantized-step unet16 W1A1 BiDM, connections and SPD",
        "spd unet16 batch 128 sample norm", "spd unet16 batch 128 batch norm",
        *(f"size {how} resunet64 against {floats}" for how in (
            "strict-1bit", "published-1bit", "binarydm-base-w1a32", "bonsai-binary-g128", "bonsai-ternary-g128",
            "bonsai-ternary-g128 base3", "ternary-w1.58a32", "ternary-w1.58a32 base3",
        ) for floats in ("float32", "float16")),
        "pack 1048576 weights", "pack load resunet64 strict-1bit against float32",
        "pack mapped resunet64 strict-1bit against dense, held",
        "pack mapped resunet64 strict-1bit against dense, batch 16",
        *(f"conv {name} {shape} batch {batch}{rival}"
          for name, rivals in (("w1a1", ("", " against bfloat16")), ("w1a4", ("",))) for batch in (128, 1)
          for shape in ("64x28x28", "128x28x28", "128x14x14", "256x7x7")
          for rival in (rivals if batch > 1 else ("",))),
        *(f"net w1a1 resunet64{maps} batch {batch}" for maps in ("", " with scale maps") for batch in (128, 1)),
        "kernels popcount peak", "kernels conv share of 45 % of the popcount peak",
        "kernels compile", "kernels cached load",
        "import onebit", "import study", "cached make paper",
    ]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_pairs_measure_two_rates_and_divide_them(pair):
    row = pair.row(seconds=0.01)
    assert row.name == pair.name and row.unit == pair.unit
    assert 0 < row.ours < math.inf and 0 < row.baseline < math.inf


def test_a_ratio_above_one_is_better_also_for_times_and_sizes():
    assert Row("import onebit", 0.5, 3.0, "s").ratio == 6.0
    assert Row("size strict-1bit", 100, 2800, "bytes").ratio == 28.0
    assert Row("data-path batches", 40.0, 2.0, "images/s").ratio == 20.0
    cells = Row("import study", 0.5, math.nan, "s").cells()
    assert (cells["ours"], cells["baseline"], cells["ratio"]) == ("0.5", "", "")


def test_interleaved_takes_turns_of_equal_time_and_flips_the_order(clock):
    """Actions of 1 s and 0.5 s in turns of 2 s: 2 calls against 4, and A B, B A, A B, ... after the warm-up."""
    calls = []

    def action(name, seconds):
        def call():
            calls.append(name)
            clock.now += seconds
        return call

    rates = bench.interleaved(action("A", 1.0), action("B", 0.5), seconds=4.0 * bench.ROUNDS)
    assert rates == (1.0, 2.0)
    assert "".join(calls) == "AB" + ("AABBBB" + "BBBBAA") * (bench.ROUNDS // 2) + "AABBBB" * (bench.ROUNDS % 2)


def test_one_disturbed_turn_does_not_move_the_rate(clock):
    durations = iter([1.0] * 4 + [50.0] + [1.0] * (2 * bench.ROUNDS - 3))  # two to warm up, then one call a turn

    def action():
        clock.now += next(durations)

    assert bench.interleaved(action, action, seconds=0.0) == (1.0, 1.0)


def test_rates_count_images_and_operations(monkeypatch):
    """One call a second of both sides: a batch of images; 6 MACs' worth of training, 2 n^3 of the product."""
    monkeypatch.setattr(bench, "interleaved", lambda ours, baseline, seconds: (1.0, 1.0))
    assert bench.train_rates(TINY, "fp16", 0) == bench.data_rates(TINY, 0) == (4.0, 4.0)
    ours, product = bench.matrix_rates(TINY, 0)
    assert ours == pytest.approx(6 * bench.macs(4) * 4 / 1e12) and product == pytest.approx(2 * 8**3 / 1e12)


@pytest.mark.parametrize("recipe", bench.RECIPES)
def test_our_step_is_the_step_of_the_training_loop(recipe, tmp_path, monkeypatch):
    """Three steps of either give the same weights, so the bench times what the study runs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the CPU repeats itself exactly
    settings, images, net = train.Settings(steps=3, batch=4), TINY.pictures(), TINY.net(recipe)
    twin = copy.deepcopy(net)
    train.train(net, images, settings, tmp_path, progress=False)
    step = bench.our_step(twin, images, settings)
    for _ in range(3):
        step()
    torch.testing.assert_close(dict(twin.state_dict()), dict(net.state_dict()))


def test_the_reference_step_trains_on_the_same_quantities(monkeypatch):
    """Its hand-written noising is DDPM Eq. 4, its pixels are uint8 / 127.5 - 1, and it moves every weight."""
    seen = {}
    net, images = nets.build("resunet", 4), torch.full((4, *bench.IMAGE), 51, dtype=torch.uint8)
    net.register_forward_pre_hook(lambda _, args: seen.update(xt=args[0], timestep=args[1]))
    monkeypatch.setattr(F, "mse_loss", lambda a, noise: seen.update(noise=noise) or (a - noise).square().mean())
    before = copy.deepcopy(list(net.parameters()))
    bench.reference_step(net, images, 4)()
    x0 = torch.full_like(seen["noise"], 51 / 127.5 - 1)
    torch.testing.assert_close(seen["xt"], add_noise(x0, seen["noise"], seen["timestep"]), rtol=1e-4, atol=1e-5)
    assert all(not torch.equal(a, b.cpu()) for a, b in zip(before, net.parameters(), strict=True))


def test_merge_replaces_its_own_rows_and_keeps_all_others(tmp_path):
    path = tmp_path / "bench.csv"
    foreign = [
        f"a,1.50,3,0.5,images/s,{bench.machine()!r}".replace("'", '"'),
        "b,1e3,2,500,images/s,NVIDIA H200",
        f'sampler,7,,,images/s,"{bench.machine()}"',
    ]
    path.write_text("\n".join([HEADER, *foreign]) + "\n")
    bench.merge(path, [Row("a", 8.0, 2.0, "images/s"), Row("b", 1.0, 4.0, "images/s")])
    mine = bench.machine()
    assert path.read_text().splitlines() == [
        HEADER, f'a,8.0,2.0,4.0,images/s,"{mine}"', foreign[1], foreign[2], f'b,1.0,4.0,0.25,images/s,"{mine}"',
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["bench.csv"]  # no temporary file is left


def test_the_machine_is_a_class_of_hardware_not_a_host():
    assert bench.machine()
    assert platform.node() == "" or platform.node() not in bench.machine()
    assert "/" not in bench.machine()


def test_a_failed_row_is_reported_and_costs_no_other(figures, monkeypatch, capsys):
    def fails(_):
        raise subprocess.CalledProcessError(2, ["make"])

    monkeypatch.setattr(bench, "benches", lambda: [Bench("bad", "s", fails), Bench("good", "s", lambda _: (1.0, 2.0))])
    assert bench.main([]) == 1
    out, err = capsys.readouterr()
    assert "SKIPPED bad" in err and "good" in out
    assert [row["name"] for row in read(figures / "bench.csv")] == ["good"]


def test_only_measures_the_rows_it_names(figures):
    assert bench.main(["--only", "import onebit"]) == 0
    (row,) = read(figures / "bench.csv")
    assert tuple(row) == bench.COLUMNS == tuple(HEADER.split(","))
    assert row["name"] == "import onebit" and float(row["baseline"]) == bench.IMPORT_BUDGET
    assert float(row["ratio"]) == float(row["baseline"]) / float(row["ours"])
    assert row["machine"] == bench.machine()


def test_a_pattern_that_names_no_row_is_an_error(figures, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "sampler"])
    assert "data-path batches" in capsys.readouterr().err
    assert not figures.exists()


def test_the_paper_is_timed_the_second_time_and_never_empty(tmp_path, monkeypatch):
    durations, commands = iter([100.0, 2.0]), []
    monkeypatch.setattr(bench, "_seconds", lambda command: commands.append(command) or next(durations))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="no notebooks"):
        bench.paper_seconds()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_x.ipynb").touch()
    assert bench.paper_seconds() == 2.0
    assert commands == [["make", "-C", str(tmp_path), "paper"]] * 2


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_the_loop_over_patches_computes_what_the_loss_does(norm):
    size = bench_distill.Size(4, 4)
    student, teacher = size.features(), size.features()
    ours = SPD(size.patches, norm=norm)(student, teacher)
    torch.testing.assert_close(bench_distill.by_patches(student, teacher, size.patches, norm), ours)


def test_trainings_side_by_side_are_counted_and_a_failing_one_is_reported():
    small = bench_side.Size(width=4, batch=8)
    assert bench_side.steps_per_second(small, 2, 0.2) > 0
    with pytest.raises(RuntimeError, match="1 of 1 trainings"):
        bench_side.steps_per_second(replace(small, recipe="no such recipe"), 1, 0.1)


def test_runs_per_hour_follow_from_steps_per_second(monkeypatch):
    monkeypatch.setattr(bench_side, "steps_per_second", lambda size, processes, seconds: 5 * processes * seconds)
    assert bench_side.run_rates(bench_side.Size(steps=1_000, processes=3), 2.0) == pytest.approx((54, 18))


def test_the_row_of_trainings_side_by_side_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_side.rows() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (name, unit, _), = bench_side.rows()
    assert unit == "runs/h" and "8 processes" in name
