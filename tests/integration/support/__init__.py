"""What the integration tests share: daemons to start, a client, a model to compare with."""
