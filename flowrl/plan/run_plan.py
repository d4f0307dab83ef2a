"""What a run will need, from its configuration alone: nothing is loaded and no GPU is asked."""

from __future__ import annotations

from dataclasses import dataclass

from flowrl.config import RunConfig
from flowrl.plan.costs import Costs, costs_of
from flowrl.plan.memory import DeviceMemory, RoleMemory, devices_of
from flowrl.plan.policy_measure import PolicyCost
from flowrl.plan.roles import roles_of
from flowrl.plan.storage import Amount, disk_of, host_of
from flowrl.plan.timing import Pass, evaluation_of, step_of
from flowrl.plan.traffic import Transfer, transfers_of
from flowrl.plan.work import StepWork


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The figures of one configuration."""

    costs: Costs
    roles: tuple[RoleMemory, ...]
    devices: tuple[DeviceMemory, ...]
    step: Pass
    evaluation: Pass
    transfers: tuple[Transfer, ...]  # of a step
    disk: tuple[Amount, ...]
    host: tuple[Amount, ...]  # of the fullest node

    @property
    def work(self) -> StepWork:
        """The counts of a step."""
        return self.costs.work

    @property
    def policy(self) -> PolicyCost:
        """What the policy takes."""
        return self.costs.policy

    @property
    def gpus(self) -> int:
        """How many devices there must be."""
        return sum(kind.devices for kind in self.devices)

    def seconds(self, rate: float) -> float:
        """Of the whole run at a rate per GPU: its steps and evaluations."""
        config = self.costs.config
        steps = config.run.steps
        evaluations = sum(config.eval.due(step, steps) for step in range(steps + 1))
        return steps * self.step.seconds(rate) + evaluations * self.evaluation.seconds(rate)


def device_memory(config: RunConfig) -> tuple[DeviceMemory, ...]:
    """The memory of the devices alone, the fullest first."""
    return devices_of(config.placement, roles_of(costs_of(config)))


def run_plan(config: RunConfig) -> RunPlan:
    """The plan of a checked configuration; raises what `flowrl.plan.model_sizes.model_sizes` raises."""
    costs = costs_of(config)
    roles = roles_of(costs)
    devices = devices_of(config.placement, roles)
    transfers = transfers_of(costs, devices)
    return RunPlan(
        costs=costs,
        roles=roles,
        devices=devices,
        step=step_of(costs, transfers),
        evaluation=evaluation_of(costs),
        transfers=transfers,
        disk=disk_of(costs),
        host=host_of(costs, devices),
    )
