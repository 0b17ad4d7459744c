"""Differential expression: who is compared, draws or histograms, statistics, the table."""
