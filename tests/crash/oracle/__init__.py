"""An oracle of what kvarnd may answer: data by keyed random numbers, states by lineage."""
