"""What a run will need, computed before it starts: memory, bytes moved, FLOPs and time."""

EFFICIENCY = 0.4  # the share of a GPU's peak rate that is assumed to be reached, unless it is said
