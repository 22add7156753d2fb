"""Bad input ends here, in one line that names the field, the value and its legal range."""
