"""Samples this host's CPU, memory, disk, network and GPUs, under MLflow's names for its page."""

import threading
from collections.abc import Callable
from typing import Any

import psutil

MEGABYTE = 1e6


class SystemMetrics:
    """A thread that hands a sample to ``report`` every ``interval_s`` seconds until stopped."""

    def __init__(self, report: Callable[[dict[str, float]], None], interval_s: float) -> None:
        self._report = report
        self._interval_s = interval_s
        self._gpus = _open_gpus()
        self._network_start = psutil.net_io_counters()
        psutil.cpu_percent()  # the first call starts the measurement
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scvi-dist-system", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no further sample."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._report(self.sample())

    def sample(self) -> dict[str, float]:
        """One value of each metric."""
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage("/")
        values = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
            "system/disk_usage_megabytes": disk.used / MEGABYTE,
            "system/disk_usage_percentage": disk.percent,
            "system/disk_available_megabytes": disk.free / MEGABYTE,
        }
        network = psutil.net_io_counters()
        if network is not None and self._network_start is not None:
            start = self._network_start
            received = network.bytes_recv - start.bytes_recv
            sent = network.bytes_sent - start.bytes_sent
            values["system/network_receive_megabytes"] = received / MEGABYTE
            values["system/network_transmit_megabytes"] = sent / MEGABYTE
        for index, gpu in enumerate(self._gpus):
            values.update(_sample_gpu(index, gpu))
        return values


def _open_gpus() -> list[Any]:
    """Handles of NVIDIA GPUs; none without a driver or the package that speaks to it."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except ImportError:
        return []
    except pynvml.NVMLError:
        return []


def _sample_gpu(index: int, handle: Any) -> dict[str, float]:
    import pynvml

    name = f"system/gpu_{index}"
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        used = pynvml.nvmlDeviceGetUtilizationRates(handle)
    except pynvml.NVMLError:
        return {}
    return {
        f"{name}_utilization_percentage": float(used.gpu),
        f"{name}_memory_usage_megabytes": memory.used / MEGABYTE,
        f"{name}_memory_usage_percentage": 100 * memory.used / memory.total,
    }
