"""On a GPU: streams, graphs, devices, launches that are refused, and nothing that waits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cuda_device import DRIVERS, GpuProblem, drivers_for, finish, needs_gpu, reset_gpu, runs
from problems import LAYOUTS, assert_same

import fastrnn
from fastrnn import _gpu
from fastrnn.functional import sequence

pytestmark = needs_gpu

#: On another stream cuBLAS may sum in another order.
ROUNDING = 1e-6


@pytest.fixture(autouse=True)
def _settings_restored():
    yield
    finish()
    reset_gpu()


def skip_without(driver: str, problem: GpuProblem) -> None:
    if driver not in drivers_for(problem):
        pytest.skip(f"{driver} cannot be had on this GPU")


def test_explain_tells_what_runs():
    for B, H, dtype in ((16, 768, torch.bfloat16), (4, 64, torch.float32), (8, 5000, torch.float32)):
        for backward in (False, True):
            told = fastrnn.cuda.explain("lstm", B, H, steps=5, dtype=dtype, backward=backward)
            assert told.possible
            assert told.reason
            p = GpuProblem("lstm", 5, B, 4, H, dtype=dtype)
            before = runs()
            with torch.no_grad():
                sequence("lstm", p.x, p.weights, p.states)
            if not backward:
                assert runs()[told.driver] == before[told.driver] + 1
    assert "float64" in str(fastrnn.cuda.explain("gru", 4, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="device: expected a GPU, got cpu"):
        fastrnn.cuda.explain("gru", 4, 8, device="cpu")


def test_a_driver_that_cannot_be_had():
    p = GpuProblem("lstm", 3, 2, 3, 8)
    for driver in ("grid", "cluster"):
        told = fastrnn.cuda.explain("lstm", 2, 8, dtype=torch.float64, driver=driver)
        assert not told.possible
        with (
            fastrnn.cuda.driver(driver),
            pytest.raises(RuntimeError, match=f'"{driver}" can run, as it was asked for'),
        ):
            p.run()
    assert fastrnn.cuda.get_driver() == "auto"


@pytest.mark.parametrize("limits", [(1, 0, 0), (2, 16384, 1), (0, 8192, 0)])
def test_a_small_machine(limits):
    """A slice of a GPU: whatever the choice, the numbers are the same."""
    p = GpuProblem("lstm", 8, 40, 16, 256, layout="lengths", dtype=torch.float32)
    exact = GpuProblem("lstm", 8, 40, 16, 256, layout="lengths").run("reference")
    _gpu.module.limit_machine(*limits)
    assert_same(p.run("fused"), exact, 1e-5)


def test_a_refused_launch_is_left_to_the_stepwise_driver():
    p = GpuProblem("gru", 5, 3, 4, 64, dtype=torch.float32)
    wanted = p.run()
    _gpu.module.set_refusing(True)
    before = runs()["stepwise"]
    assert_same(p.run(), wanted, 1e-6)
    assert runs()["stepwise"] == before + 2
    for driver in set(drivers_for(p)) - {"stepwise"}:
        with fastrnn.cuda.driver(driver), pytest.raises(RuntimeError, match="can run, as it was asked for"):
            p.run()
    torch.cuda.synchronize()  # no error is left behind


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_training_step_in_a_graph(layout, driver):
    p = GpuProblem("lstm", 6, 5, 3, 40, layout=layout, dtype=torch.float32)
    skip_without(driver, p)
    leaves = p.leaves()

    def step() -> dict[str, torch.Tensor]:
        y, finals = sequence("lstm", p.x, p.weights, p.states, backend="fused", **p.arguments)
        loss = y.square().sum() + sum(f.sin().sum() for f in finals)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        return {"y": y, **{f"d{name}": g for name, g in zip(leaves, grads, strict=True)}}

    with fastrnn.cuda.driver(driver):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for seed in range(3):
            with torch.no_grad():
                p.x.copy_(torch.randn(p.x.shape, generator=torch.Generator().manual_seed(seed)))
                if "lengths" in p.arguments:
                    p.arguments["lengths"].copy_(torch.randint(0, p.steps + 1, (p.batch,)))
            graph.replay()
            finish()
            replayed = {name: t.clone() for name, t in captured.items()}
            assert_same(replayed, step(), ROUNDING)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_module_with_its_optimizer_in_a_graph(bidirectional):
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(fastrnn.LSTM(8, 32, num_layers=2, bidirectional=bidirectional, device="cuda"))
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    x = torch.randn(10, 4, 8, device="cuda")

    def step(net, optimizer) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = net(x)[0].square().mean()
        loss.backward()
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(nets[0], optimizers[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(nets[0], optimizers[0])
    for _ in range(5):
        graph.replay()
    for _ in range(3 + 5):
        step(nets[1], optimizers[1])
    finish()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "drivers", [("grid", "grid"), ("cluster", "cluster"), ("grid", "cluster"), ("grid", "stepwise")]
)
def test_two_streams_at_once(drivers):
    """Each kernel large enough to want the whole GPU: they may take turns, but neither waits for the other forever."""
    problems = [GpuProblem("lstm", 200, 16, 8, 512, seed=k, dtype=torch.bfloat16) for k in range(2)]
    for driver, p in zip(drivers, problems, strict=True):
        skip_without(driver, p)
    alone = []
    for driver, p in zip(drivers, problems, strict=True):
        with fastrnn.cuda.driver(driver):
            alone.append(p.run())
    finish()
    streams = [torch.cuda.Stream() for _ in problems]
    for _ in range(10):
        found = []
        for stream, driver, p in zip(streams, drivers, problems, strict=True):
            with torch.cuda.stream(stream), fastrnn.cuda.driver(driver):
                found.append(p.run())
        for stream in streams:
            with torch.cuda.stream(stream):
                finish()
        torch.cuda.synchronize()
        for a, b in zip(found, alone, strict=True):
            assert_same(a, b, 0.02)


@pytest.mark.parametrize("driver", DRIVERS)
def test_beside_a_kernel_that_holds_the_gpu(driver):
    p = GpuProblem("gru", 30, 8, 8, 256, dtype=torch.float32)
    skip_without(driver, p)
    with fastrnn.cuda.driver(driver):
        wanted = p.run()
        busy = torch.cuda.Stream()
        a = torch.randn(4096, 4096, device="cuda")
        busy.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(busy):
            for _ in range(50):
                a = (a @ a).clamp(-1, 1)
        for _ in range(10):
            assert_same(p.run(), wanted, 0)
        finish()


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_current_stream(driver):
    p = GpuProblem("lstm", 10, 4, 3, 64, dtype=torch.float32)
    skip_without(driver, p)
    x = p.x.detach().clone()
    with fastrnn.cuda.driver(driver):
        wanted = p.run()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            with torch.no_grad():
                p.x.fill_(float("nan"))
                torch.cuda._sleep(20_000_000)
                p.x.copy_(x)  # on this stream, after a while
            found = p.run()
        stream.synchronize()
        assert_same(found, wanted, ROUNDING)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("driver", DRIVERS)
def test_nothing_waits_for_the_gpu(driver, layout):
    p = GpuProblem("lstm", 6, 5, 3, 40, layout=layout, dtype=torch.float32)
    skip_without(driver, p)
    outputs = p.run()  # what is made at the first call
    seeds = p.seeds((outputs["y"], outputs["h_n"], outputs["c_n"]))
    torch.cuda.synchronize()
    with fastrnn.cuda.driver(driver):
        torch.cuda.set_sync_debug_mode("error")
        try:
            y, finals = sequence("lstm", p.x, p.weights, p.states, backend="fused", **p.arguments)
            torch.autograd.grad((y, *finals), list(p.leaves().values()), seeds)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_module_waits_for_the_gpu(bidirectional):
    net = fastrnn.GRU(4, 32, num_layers=2, dropout=0.3, bidirectional=bidirectional, device="cuda")
    x = torch.randn(7, 5, 4, device="cuda", requires_grad=True)
    lengths = torch.tensor([3, 7, 0, 5, 1], device="cuda")
    reset = torch.rand(7, 5, device="cuda") < 0.3
    ids = torch.randint(0, 9, (7, 5), device="cuda")
    table = torch.nn.Embedding(9, 4, device="cuda")

    def work() -> None:
        for options in ({"lengths": lengths}, {"lengths": lengths, "reset": reset, "recompute": 3}):
            y, h = net(x, **options)
            (y.sum() + h.sum()).backward()
        y, _ = net(ids, lengths=lengths, embedding=table)
        y.sum().backward()

    work()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_threads_with_shapes_of_their_own():
    """The attributes of a kernel belong to the process."""
    from concurrent.futures import ThreadPoolExecutor

    problems = [GpuProblem("lstm", 10, 8, 4, H, dtype=torch.float32) for H in (16, 64, 200, 256)]
    wanted = [p.run() for p in problems]
    finish()

    def work(k: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                found = problems[k].run()
                torch.cuda.current_stream().synchronize()
                assert_same(found, wanted[k], ROUNDING)

    torch.cuda.synchronize()
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(work, range(4)):
            pass


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_gpu_than_the_current_one():
    for driver in ("auto", *DRIVERS):
        p = GpuProblem("lstm", 6, 5, 3, 40, dtype=torch.float32, device="cuda:1")
        with torch.cuda.device(0), fastrnn.cuda.driver(driver):
            if driver in ("auto", *drivers_for(p)):
                found = p.run()
                assert found["y"].device == torch.device("cuda:1")
                assert torch.cuda.current_device() == 0
                assert_same(found, GpuProblem("lstm", 6, 5, 3, 40, device="cuda:1").run("reference"), 1e-5)
    q = GpuProblem("lstm", 6, 5, 3, 40, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="states: expected a dense tensor on cuda:0, got Strided on cuda:1"):
        sequence("lstm", q.x, q.weights, p.states)


@pytest.mark.parametrize("variable", ["CUDA_LAUNCH_BLOCKING", "PYTORCH_NO_CUDA_MEMORY_CACHING"])
def test_under_settings_for_debugging(variable):
    code = (
        "import torch, fastrnn\n"
        "net = fastrnn.LSTM(5, 70, bidirectional=True, device='cuda')\n"
        "net(torch.randn(9, 4, 5, device='cuda'))[0].sum().backward()\n"
        "torch.cuda.synchronize()\n"
        "assert all(p.grad.isfinite().all() for p in net.parameters())\n"
    )
    environment = {**os.environ, variable: "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", DRIVERS)
def test_driver_from_the_environment(name):
    code = "import fastrnn; print(fastrnn.cuda.get_driver())"
    environment = {**os.environ, "FASTRNN_CUDA_DRIVER": name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [name], done.stderr
