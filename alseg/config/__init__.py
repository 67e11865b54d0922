"""From the command line and conf/ to an experiment, and how errors are reported."""
