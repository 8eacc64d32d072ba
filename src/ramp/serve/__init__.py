"""The model in a browser and behind an OpenAI-compatible API: `ramp serve`."""
