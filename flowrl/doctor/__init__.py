"""Examines a machine, and whether a run can start on it; each finding says what to do."""
