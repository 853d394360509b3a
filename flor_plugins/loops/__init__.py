"""flor_plugins for hand-written loops: `flor.checkpoints`, `flor.loop`."""
