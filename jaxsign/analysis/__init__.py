"""Reading results: stages, equal training loss, numbers of one run, curvature, loss landscapes."""
