"""Some of the cells or genes of a store, or more columns, without a copy."""
