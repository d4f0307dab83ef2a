"""Small random checkpoints in the file layouts of published rewards. Each writer returns the options of its reward."""
