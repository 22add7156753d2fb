"""What do we claim, and does it hold? Claims of every experiment, their settings and verdicts."""
