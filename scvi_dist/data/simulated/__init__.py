"""Cells that never were, for tests, examples and benchmarks."""
