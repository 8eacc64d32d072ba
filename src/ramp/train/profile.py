"""A trace of some steps, for the page "Profile" of TensorBoard (package tensorboard-plugin-profile)
and for any viewer of Chrome's traces.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax


@dataclass
class Profile:
    """Traces `steps` steps, the first ones that neither trace nor compile; 0: none.

    Each process writes its own files into `folder`/plugins/profile.
    """

    folder: Path
    steps: int
    left: int | None = None  # None: not begun

    def begin(self) -> None:
        """Begin, once."""
        if self.steps and self.left is None:
            self.left = self.steps
            jax.profiler.start_trace(self.folder)

    def count(self, result: Any) -> None:
        """Count a step that leads to `result`; after the last one wait for it, and end."""
        if self.left:
            self.left -= 1
            if not self.left:
                jax.block_until_ready(result)
                self.end()

    def end(self) -> None:
        """Write what has been traced, also of a run that leaves early."""
        if self.left is not None and self.steps:
            self.steps = self.left = 0
            jax.profiler.stop_trace()
