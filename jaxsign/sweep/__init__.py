"""From axes to results: the table of runs, its blocks, and the loop that runs them."""
