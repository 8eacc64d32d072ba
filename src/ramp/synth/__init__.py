"""Training on the model's own data, generation after generation, without losing its diversity."""
