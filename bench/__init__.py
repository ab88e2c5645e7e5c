"""What the workers cost, measured beside their peers. `make bench` runs all of it and writes RESULTS.md."""
