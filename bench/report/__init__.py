"""docs/benchmarks.md, the grid and the plots, from the files in bench/results."""
