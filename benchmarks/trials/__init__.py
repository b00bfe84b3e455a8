"""Short, fair training runs: one change each, everything else equal."""
