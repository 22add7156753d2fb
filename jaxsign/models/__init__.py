"""Pure models: parameters and inputs in, numbers out."""
