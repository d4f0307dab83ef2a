"""What an experiment of matched runs shows: its records read, paired, judged and told."""
