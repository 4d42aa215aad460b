"""Model drivers: `TorchCore` and what it stands on."""
