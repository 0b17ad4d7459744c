"""Many stores as one: genes by name, columns and categories in common."""
