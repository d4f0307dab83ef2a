"""The pocket world: a small closed world of shapes whose truth can be computed, and the models trained on it."""
