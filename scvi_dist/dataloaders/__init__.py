"""Which rows go where, and when: plans of reading and the loaders that carry them out."""
