"""Pure functions on tensors: schedules, sampler steps, sampling and replay, advantages, seeds."""
