"""Examples, from wherever they are: the `data` sections of a search file, records, shots."""
