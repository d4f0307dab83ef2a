"""Preference data: what a comparison is, readers for the formats that people have, and the prepared store."""
