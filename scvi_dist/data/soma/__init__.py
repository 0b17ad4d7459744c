"""TileDB-SOMA experiments: the store, its writer, and a direct reader of local fragments."""
