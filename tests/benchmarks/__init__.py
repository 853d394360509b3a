"""What recording costs: each module is started by `python -m tests.benchmarks.NAME` and prints
a table and a JSON line.

Compared variants alternate in one process (A B B A), figures are ratios with an interval, and a
control says how much of a ratio is noise. `--scale tiny --pairs 3` runs any of them in seconds,
to see that it works."""
