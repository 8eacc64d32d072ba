"""Which step was right? Process-reward RL, audited against outcome-only RL."""
