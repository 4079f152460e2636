"""Devices: what is asked for is used or refused, and one process is its own world."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainers import devices
from trainers.devices import Machine
from trainers.errors import ConfigError


def on(device: str, precision: str) -> Machine:
    """A machine that is not really there."""
    state: Any = SimpleNamespace(device=torch.device(device))
    return Machine(state, precision)


def test_the_cpu_computes_in_float32_unless_told_otherwise() -> None:
    machine = devices.machine("cpu")
    assert (machine.device.type, machine.precision, machine.frozen_dtype) == ("cpu", "fp32", torch.float32)
    assert devices.machine("cpu", "bf16").precision == "bf16"


@pytest.mark.parametrize("device", [f"cuda:{torch.cuda.device_count() + 3}", "mps"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has an mps device")
    with pytest.raises(ConfigError, match=device) as caught:
        devices.machine(device)
    assert "cpu" in caught.value.faults[0]


def test_the_frozen_base_is_halved_on_accelerators_alone() -> None:
    assert on("cuda", "bf16").frozen_dtype == torch.bfloat16
    assert on("cuda", "fp16").frozen_dtype == torch.float16
    assert on("cuda", "fp32").frozen_dtype == on("cpu", "bf16").frozen_dtype == torch.float32


@pytest.mark.parametrize("precision", devices.DTYPES)
def test_autocast_computes_in_the_precision(precision: str) -> None:
    with devices.machine("cpu", precision).autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == devices.DTYPES[precision]


def test_only_fp16_scales_the_loss_and_a_resumed_run_can_set_the_scale_at_once() -> None:
    assert not devices.machine("cpu", "bf16").scaler().is_enabled()
    scaler = devices.machine("cpu", "fp16").scaler()
    assert scaler.get_scale() == 1024
    scaler.update(64.0)
    assert scaler.get_scale() == 64
    assert float(scaler.scale(torch.tensor(2.0))) == 128


def test_one_process_is_the_whole_world() -> None:
    machine = devices.machine("cpu")
    assert (machine.rank, machine.world, machine.leads) == (0, 1, True)
    tensor = torch.ones(3)
    assert machine.sum(tensor) is tensor
    machine.sum_(tensor)
    assert tensor.tolist() == [1, 1, 1]
    machine.wait()


def test_peak_memory_is_what_the_kernel_counted_in_bytes() -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("no /proc here to compare with")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    assert devices.peak_memory(torch.device("cpu")) == pytest.approx(int(line.split()[1]) * 1024, rel=0.05)


def test_auto_on_a_cpu_is_bfloat16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, width, wanted in ((True, 1280, "bf16"), (True, 256, "fp32"), (False, 1280, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert devices.machine("cpu", "auto", width).precision == wanted
