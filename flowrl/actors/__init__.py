"""The roles Rollout, Scorer and Learner as plain classes, and the one module that puts them on Ray."""
