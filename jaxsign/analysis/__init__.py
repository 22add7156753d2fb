"""How are results read? Runs, stages, equal training loss, numbers of one run, curvature, loss landscapes."""
