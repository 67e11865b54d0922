"""Trains and evaluates one network: the LightningModule, its trainer, its metrics."""
