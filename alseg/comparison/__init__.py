"""Compares finished runs: tables, tests, forecasts, figures and one page (``alseg.compare``)."""
