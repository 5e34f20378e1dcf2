"""Measurements side by side with named peers; one file a row, run by `make bench`."""
