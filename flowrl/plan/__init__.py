"""What a run will need, computed before it starts: memory, bytes moved, FLOPs and time."""
