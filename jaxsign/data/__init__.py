"""Pure samplers: key first, numbers of Hyper may be traced."""
