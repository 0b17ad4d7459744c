"""Passes over cells whose parts merge, and the engines that run them: threads, Dask, Ray."""
