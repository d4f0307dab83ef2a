"""A reward behind HTTP: any reward in a process of its own, with its own packages or GPU, and the client that asks it.

`flowrl reward serve NAME` starts the server; a configuration names the client as `http` with the server's `url`.
"""

from rewards.http.client import HTTPReward, RewardServerError

__all__ = ["HTTPReward", "RewardServerError"]
