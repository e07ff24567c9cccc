"""Training of CLaRa models: the generated world, the losses and the bundled model."""
