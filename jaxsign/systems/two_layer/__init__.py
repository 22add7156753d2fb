"""The paper's system: a two-layer transformer on signal and sparse noise (read problem, data, model, task)."""
