"""Data, network, loss and rival of the experiment."""
