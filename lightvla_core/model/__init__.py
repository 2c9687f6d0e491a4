"""The LightVLA network in plain torch. It knows nothing of files, robots' drivers, or how it is distributed."""
