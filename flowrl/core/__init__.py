"""The mathematics: schedules, sampler steps, sampling and replay, advantages, sums of rewards, buckets and seeds."""
