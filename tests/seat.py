"""An actor that tells where it sits."""

from __future__ import annotations

import os


class Seat:
    """Tells its node and the GPU that it sees."""

    def node(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def gpu(self) -> str:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")
