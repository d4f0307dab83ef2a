"""The environment of every test: one thread, no network, the CPU unless GPU tests are asked for, a quiet Ray.

Set before anything imports torch or ray, which read it once.
"""

from __future__ import annotations

import os
import sys

import pytest

_ENVIRONMENT = {
    # Sums are bit-equal only at the same number of threads.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    # Ray at nice 15, the default, crawls on a busy machine of two cores.
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": "180",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_LOG_TO_DRIVER": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
}
os.environ.update(_ENVIRONMENT)
os.environ.pop("RAY_ADDRESS", None)  # a test never joins a cluster that happens to be there
if sys.platform == "linux":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a host whose name resolves oddly cannot break a gang


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all but GPU tests, and fix what libraries read once."""
    markers = config.getoption("markexpr")
    if "gpu" not in markers or "not gpu" in markers:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["DS_ACCELERATOR"] = "cpu"
    import hypothesis
    import torch

    torch.set_num_threads(1)
    # The same examples on every machine, and no deadline that a busy one would miss.
    hypothesis.settings.register_profile("flowrl", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("flowrl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU, and keep together what shares fixtures when two processes run the tests.

    All tests that start Ray go to one process, so that there is never more than one cluster.
    """
    import torch

    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.get_closest_marker("ray") else item.location[0]))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
