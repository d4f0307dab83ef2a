"""Pages about runs: what one run did, and two of them side by side; written from a run's files alone."""
