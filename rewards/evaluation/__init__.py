"""How well rewards agree with people: protocols of accuracy, intervals, published figures, the whole command.

`flowrl reward eval CONFIG` is `rewards.evaluation.run`; the mathematics (`accuracy`, `bootstrap`) needs no file.
"""
