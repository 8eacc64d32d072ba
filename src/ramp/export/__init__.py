"""Files of other tools: `ramp export` writes a Hugging Face folder, `ramp import` reads one."""
