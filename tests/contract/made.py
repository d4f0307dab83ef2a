"""How the contract tests make each built-in reward: its options, by the reward's name."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowrl.base.embedded import EMBEDDED
from flowrl.config import RewardSpec
from flowrl.reward_loading import make_reward
from rewards.http.server import RewardServer
from tests.published import clip_family, dina_lrm
from tests.published.image_reward import write_image_reward


def _embedded(_: Path) -> dict[str, Any]:
    """No options: the reward comes with the package."""
    return {}


def _served(_: Path) -> dict[str, Any]:
    """The url of a server of the embedded DiT-Reward that ends with the tests."""
    server = RewardServer(make_reward(RewardSpec(name="dit_reward")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return {"url": server.url}


# Each function gets an empty folder for the files that the options name.
OPTIONS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    "dit_reward": _embedded,
    "dit_reward_pixels": _embedded,
    "hpsv3": _embedded,
    "hpsv2": lambda folder: clip_family.write_hpsv2(folder, "2.0"),
    "hpsv2_1": lambda folder: clip_family.write_hpsv2(folder, "2.1"),
    "pick_score": clip_family.write_pick_score,
    "clip_score": clip_family.write_clip_score,
    "aesthetic": clip_family.write_aesthetic,
    "image_reward": write_image_reward,
    "dina_lrm": lambda folder: dina_lrm.write(folder, scaling=1.0318, shift=-0.0201),  # the pocket policy's space
    "http": _served,
    "oracle": _embedded,
    "oracle_attributes": _embedded,
    "oracle_relation": _embedded,
    "oracle_shape": _embedded,
    "oracle_cleanliness": _embedded,
}


def _copied(option_of: Mapping[str, str]) -> Callable[[Path], Mapping[str, Any]]:
    """What copies embedded checkpoints into an empty folder, each named by an option."""

    def copying(folder: Path) -> Mapping[str, Any]:
        return {option: str(shutil.copytree(EMBEDDED / name, folder / name)) for option, name in option_of.items()}

    return copying


# As OPTIONS, of all that read files, none of which comes with the package.
IN_FOLDERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    **{name: writer for name, writer in OPTIONS.items() if writer not in (_embedded, _served)},
    "dit_reward": _copied({"path": "dit_reward"}),
    "dit_reward_pixels": _copied({"path": "dit_reward", "encoders": "sd35"}),
    "hpsv3": _copied({"path": "hpsv3"}),
}
