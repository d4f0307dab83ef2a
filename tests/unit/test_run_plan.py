"""What a run is said to need: counts by hand, and whether it fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowrl.base.errors import CheckpointError
from flowrl.cli.main import main
from flowrl.config import RunConfig, load
from flowrl.core.sampler import sample
from flowrl.plan.gpus import Gpu
from flowrl.plan.memory import RoleMemory, room
from flowrl.plan.proposals import proposals, too_large
from flowrl.plan.run_plan import RunPlan, run_plan
from flowrl.plan.work import step_work
from flowrl.protocols import Policy
from flowrl.types import Prompt, RolloutRequest, SamplingPlan
from tests import tiny

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "configs" / "pocket" / "ditreward.yaml"


def tiny_config(folder: Path, *more: str) -> RunConfig:
    """16 groups of 4 on the tiny policy, 2 samples in a forward, 2 of 3 sampler steps trained."""
    sizes = ["rollout.prompts_per_step=16", "rollout.group_size=4", "rollout.samples_per_forward=2"]
    sizes += ["rollout.num_steps=3", "algorithm.trained_steps=all", f"model.image_size={tiny.IMAGE_SIZE}"]
    return load(POCKET, [f"model.path={folder}", *sizes, *more])


def gpu(memory: int) -> Gpu:
    return Gpu(name="some", title="some GPU", memory=memory, flops=1e12)


def peaks(plan: RunPlan) -> dict[str, int]:
    return {role.role: role.peak for role in plan.roles}


def test_the_paper_s_step_is_two_updates_of_384_samples() -> None:
    work = step_work(load(ROOT / "configs" / "sd35-large" / "ditreward.yaml"))
    assert (work.samples, work.samples // work.inner_steps, work.trained_steps) == (768, 384, 9)
    assert work.forwards == 768 // 4 * 10
    assert work.losses == 768 // 4 * 9
    assert (work.rollouts, work.learners, work.scorers) == (12, 12, 4)


def test_a_local_run_has_one_of_each(sd3_folder: Path) -> None:
    work = step_work(tiny_config(sd3_folder, "placement.mode=local"))
    assert (work.rollouts, work.learners, work.scorers) == (1, 1, 1)


def test_phases_are_the_forwards_times_their_cost(sd3_folder: Path) -> None:
    plan = run_plan(tiny_config(sd3_folder, "placement.num_rollouts=4"))
    rollout, update = plan.phases
    assert rollout.flops == 16 * 2 * 3 * plan.policy.sample_flops
    assert update.flops == 16 * 2 * 2 * plan.policy.update_flops
    assert rollout.seconds(1e9) == pytest.approx(rollout.flops / 4 / 1e9)


def test_only_a_reward_on_images_has_them_decoded_in_a_step(sd3_folder: Path) -> None:
    latent, pixel = (
        run_plan(tiny_config(sd3_folder, f"rewards.train.0.name={name}")) for name in ("dit_reward", "hpsv2")
    )
    assert [phase.name for phase in latent.phases] == ["rollout", "update"]
    assert [phase.name for phase in pixel.phases] == ["rollout", "decode", "update"]


def held(*roles: RoleMemory) -> int:
    return sum(part.size for role in roles for part in role.held)


def test_in_one_process_all_is_held_at_once(sd3_folder: Path) -> None:
    fused, local = (run_plan(tiny_config(sd3_folder, f"placement.mode={mode}")) for mode in ("fused", "local"))
    [one] = local.devices
    work = [part.size for role in local.roles for part in role.in_turn]
    assert one.peak == held(*fused.roles) + max(work) == held(*one.roles) + max(work)
    assert (fused.gpus, local.gpus) == (2 + 2, 1)


def test_the_encoder_sits_with_a_scorer(sd3_folder: Path) -> None:
    plan = run_plan(tiny_config(sd3_folder, "placement.num_scorers=3"))
    assert plan.gpus == 2 + 2 + 3
    kinds = {tuple(role.role for role in kind.roles): kind for kind in plan.devices}
    assert {roles: kind.devices for roles, kind in kinds.items()} == {
        ("encoder", "scorer"): 1,
        ("scorer",): 2,
        ("rollout",): 2,
        ("learner",): 2,
    }
    both = kinds["encoder", "scorer"]
    assert both.peak == sum(role.peak for role in both.roles) + 500 * 10**6  # the context of a second process


def test_in_turns_only_one_role_has_its_frozen_weights_on_a_shared_device(sd3_folder: Path) -> None:
    shared = ["placement.mode=colocated", "placement.num_rollouts=1", "placement.num_learners=1"]
    shared += ["placement.num_scorers=1", "data.condition_cache=c", "data.encode_ahead=4"]
    [together] = run_plan(tiny_config(sd3_folder, *shared)).devices
    [in_turn] = run_plan(tiny_config(sd3_folder, *shared, "placement.offload=true")).devices
    assert [role.role for role in in_turn.roles] == ["encoder", "rollout", "scorer", "learner"]
    encoder, rollout, scorer, learner = in_turn.roles
    assert encoder.stays == 0 < encoder.peak
    contexts = 3 * 500 * 10**6
    assert together.peak == contexts + sum(role.peak for role in together.roles)
    stays = rollout.stays + scorer.stays + learner.stays
    assert stays == held(rollout, scorer, learner) - 2 * learner.held[0].size
    most = max(role.peak - role.stays for role in (encoder, rollout, scorer, learner))
    assert in_turn.peak == contexts + stays + most


def test_the_text_encoders_are_counted(sd3_folder: Path) -> None:
    encoder = run_plan(tiny_config(sd3_folder)).roles[0]
    files = sd3_folder.glob("text_encoder*/model.safetensors")
    assert encoder.role == "encoder"
    assert encoder.peak == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)  # float32, with headers


def test_a_learner_that_samples_holds_the_weights_once(sd3_folder: Path) -> None:
    split, fused = (run_plan(tiny_config(sd3_folder, f"placement.mode={mode}")) for mode in ("split", "fused"))
    assert peaks(fused)["learner that samples"] == peaks(split)["learner"]
    assert peaks(split)["rollout"] < peaks(split)["learner"]


def test_trajectories_are_as_large_as_those_that_are_sampled(sd3_folder: Path, policy: Policy) -> None:
    config = tiny_config(sd3_folder)
    [text] = tiny.conditions(sd3_folder, tiny.TEXTS[0])
    plan = SamplingPlan(kinds=("sde",) * 3, noise_level=0.7, start=0, stop=2)
    request = RolloutRequest(prompt=Prompt(id=0, text=""), seed=0, step=1, num_samples=4, plan=plan, guidance_scale=4.5)
    group = sample(policy, request, text, text, policy_version=0, samples_per_forward=2, device=torch.device("cpu"))
    expected = 16 * group.num_bytes
    assert run_plan(config).trajectory_bytes == pytest.approx(expected, rel=0.02)  # seeds and log-probabilities apart


def test_what_does_not_fit_is_told_and_what_is_proposed_fits(sd3_folder: Path) -> None:
    config = tiny_config(sd3_folder, "rollout.samples_per_forward=4", "placement.mode=local")
    plan = run_plan(config)
    fewer = run_plan(tiny_config(sd3_folder, "rollout.samples_per_forward=2", "placement.mode=local"))
    between = (plan.devices[0].peak + fewer.devices[0].peak) / 2
    small = gpu(int(between / 0.92))
    assert room(small) == pytest.approx(between, abs=2)
    assert too_large(plan, small) == list(plan.devices)
    assert "rollout.samples_per_forward=2" in proposals(config, small)
    assert any("checkpointing" in one for one in proposals(config, small))
    assert not too_large(fewer, small)


def test_a_gpu_for_nothing_is_proposed_a_larger_one(sd3_folder: Path) -> None:
    assert proposals(tiny_config(sd3_folder), gpu(1000)) == ["a GPU with 24 GB, such as RTX 4090 24 GB"]


def test_a_model_of_unknown_sizes_is_named() -> None:
    config = load(POCKET, ["model.path=/nowhere/some-model"])
    with pytest.raises(CheckpointError, match=r"model\.path: /nowhere/some-model .* stable-diffusion-3\.5-large"):
        run_plan(config)


def test_the_command_prints_the_plan_and_fails_where_it_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(POCKET), "--gpu", "a100"]) == 0
    assert "1,979,392 parameters, an adapter of 47 layers with 288,768" in capsys.readouterr().out
    assert main(["plan", str(POCKET), "--gpu", "a1000"]) == 2
    assert "did you mean 'a100'?" in capsys.readouterr().err
