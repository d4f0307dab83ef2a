"""Judges: what looks at images and says how good they are, apart from the rewards that a policy is trained on."""
