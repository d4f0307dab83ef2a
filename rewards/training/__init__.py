"""Training reward models on preference pairs: losses, batches, the loop, and its configuration."""
