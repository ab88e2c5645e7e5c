"""The cost of the workers, measured beside their peers. `make bench` runs all of it and writes RESULTS.md."""
