"""How the learner ranks share the model, the gradient and the optimizer: one file for each way."""
