"""Systems as Tasks, one file a system."""
