"""Models: the LightningModule and Monte-Carlo dropout."""
