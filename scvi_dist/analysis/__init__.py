"""What a trained module says of cells: pure functions of a module and a stream of cells."""
