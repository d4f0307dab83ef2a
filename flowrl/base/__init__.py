"""What every part stands on and none of it is mathematics: errors, configuration files, checkpoints, logs, locks."""
