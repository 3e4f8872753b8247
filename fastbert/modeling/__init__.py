"""What all model families share: configuration, loading, encoder, tasks, losses, int8."""
