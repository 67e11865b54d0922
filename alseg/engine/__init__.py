"""Starts, resumes and sweeps runs: a job is a run folder. Looks at data sets."""
