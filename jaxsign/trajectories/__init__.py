"""Parameters of any stored step of a sweep, and new observables of old runs."""
