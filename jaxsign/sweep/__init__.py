"""Many runs: the definition of a sweep, its plan, and the loop that trains and stores its runs."""
