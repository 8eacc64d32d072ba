"""The one path from prompts to tokens: for chat, evals, rollouts, synthetic data and the server."""
