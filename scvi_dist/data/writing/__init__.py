"""Stores that are made: copies, layouts, shuffled copies, results in shards."""
